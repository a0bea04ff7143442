from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import synthetic_records as synthetic
from synthetic_costs import everything

from normbench.cells import Record
from normbench.leaderboard import catalogue, site
from normbench.leaderboard.boards import Board, boards
from normbench.store import Store

MakeBoards = Callable[..., list[Board]]


@pytest.fixture(scope="session")
def catalogue_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("catalogue") / "catalogue.json"
    path.write_text(json.dumps(synthetic.catalogue_json()), encoding="utf-8")
    return path


@pytest.fixture
def boards_of(tmp_path: Path, catalogue_file: Path) -> MakeBoards:
    """Boards of the given records, by way of the store."""

    def make(*records: Record) -> list[Board]:
        frame = Store(synthetic.store(tmp_path / "results", records)).read()
        return boards(frame, catalogue.load(catalogue_file))

    return make


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory, catalogue_file: Path) -> list[Board]:
    """The boards of a whole invented suite."""
    folder = synthetic.store(tmp_path_factory.mktemp("study"), synthetic.study())
    return boards(Store(folder).read(), catalogue.load(catalogue_file))


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory, catalogue_file: Path) -> Path:
    """A site built from the same suite and examinations of its methods."""
    folder = tmp_path_factory.mktemp("site")
    results = synthetic.store(folder / "results", everything())
    suites = folder / "suites"
    suites.mkdir()
    (suites / "a.yaml").write_text("name: invented\nquestion: Does <it> & why?\n")
    site.build([results], folder / "out", catalogue=catalogue_file, suites=suites)
    return folder / "out"
