from __future__ import annotations

import time
from pathlib import Path

import pytest
from made_images import labels_of, pixels, write_parquet

from normbench.data import DataError, load

datasets = pytest.importorskip("datasets", reason="GPU machines do not have it")

README = """---
configs:
- config_name: fine
  data_files:
  - split: train
    path: fine/train-*
  - split: test
    path: fine/test-*
- config_name: bare
  data_files:
  - split: train
    path: fine/train-*
dataset_info:
  config_name: fine
  features:
  - name: img
    dtype: image
  - name: coarse_label
    dtype: int64
  - name: fine_label
    dtype:
      class_label:
        names:
          '0': apple
          '1': bear
          '2': bee
          '3': bowl
---
# A data set as the Hub has it
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A local folder laid out like a repository of the Hub, with CIFAR-100's columns."""
    for split, count, seed in (("train", 40, 1), ("test", 12, 2)):
        extra: dict[str, list[object]] = {"coarse_label": [0] * count}
        write_parquet(
            tmp_path / "fine" / f"{split}-00000-of-00001.parquet", list(pixels(count, seed)),
            labels_of(count), label="fine_label", extra=extra,
        )  # fmt: skip
    (tmp_path / "README.md").write_text(README)
    return tmp_path


def test_a_local_repository_loads_like_one_of_the_hub(repository: Path) -> None:
    data = load(f"hf:{repository}", config="fine")
    assert data.class_names == ("apple", "bear", "bee", "bowl")
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 12)
    assert data.test.labels.tolist() == labels_of(12)


def test_it_equals_the_same_files_read_as_parquet(repository: Path) -> None:
    hub = load(f"hf:{repository}", config="fine")
    parquet = load(f"parquet:{repository}/fine", label_column="fine_label")
    assert hub.fingerprint == parquet.fingerprint


def test_a_single_split_is_carved(repository: Path) -> None:
    data = load(f"hf:{repository}", config="bare", label_column="fine_label")
    assert len(data.train) + len(data.validation) + len(data.test) == 40


def test_it_streams(repository: Path) -> None:
    data = load(f"hf:{repository}", config="fine", streaming=True, image_size=8)
    memory = load(f"hf:{repository}", config="fine", image_size=8)
    assert (next(data.test.ordered(12))[0] - next(memory.test.ordered(12))[0]).abs().max() < 1e-5


def test_relative_folders(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(repository.parent)
    assert load(f"hf:./{repository.name}", config="fine").num_classes == 4


def test_the_config_must_be_one_there_is(repository: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be loaded: .*'fine'"):
        load(f"hf:{repository}", config="fin")


def test_a_missing_column_is_told_with_those_there_are(repository: Path) -> None:
    with pytest.raises(DataError, match="its columns are img, coarse_label, fine_label"):
        load(f"hf:{repository}", config="fine", label_column="lbl")


def test_offline_is_one_sentence_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    start = time.monotonic()
    with pytest.raises(DataError) as caught:
        load("hf:owner/name")
    assert "hf:owner/name is not in the local cache of datasets" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - start < 5


def test_a_hub_that_does_not_answer_costs_no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", "http://127.0.0.1:9")  # nobody listens
    monkeypatch.setattr("urllib.request.getproxies", dict)
    start = time.monotonic()
    with pytest.raises(DataError, match="its hub cannot be reached"):
        load("hf:owner/name")
    assert time.monotonic() - start < 5
    assert not datasets.config.HF_HUB_OFFLINE
