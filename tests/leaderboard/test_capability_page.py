"""The page with what all methods can do. Its links, ids and captions: test_pages.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import synthetic_records as synthetic
from parsed_page import Page

from normbench.leaderboard import site


@pytest.fixture(scope="module")
def text(built: Path) -> str:
    return (built / "capabilities.html").read_text(encoding="utf-8")


def cells(text: str, method: str) -> list[str]:
    """The texts of a method's row, in the first table that has it."""
    link = f'<a href="methods/{method}.html#capabilities">'
    found = re.search(f'<tr><th scope="row"[^>]*>{re.escape(link)}.*?</tr>', text, re.DOTALL)
    assert found is not None
    parts = re.findall(r"<t[hd].*?</t[hd]>", found[0], re.DOTALL)
    return [re.sub(r"<[^>]*>", "", part) for part in parts]


def test_a_row_has_the_answers_and_the_day(text: str) -> None:
    assert cells(text, "group_norm") == ["group_norm", "yes", "10.0", "2026-01-02"]


def test_an_answer_without_an_activation_stands_in_the_same_cell(text: str) -> None:
    assert cells(text, "proxy_norm") == ["proxy_norm", "yes (no)", "12.5 (4.00)", "2026-01-01"]
    assert 'title="without activation: alone">yes' in text


def test_a_word_stands_where_there_is_no_value(text: str) -> None:
    assert cells(text, "batch_renorm")[1] == "crashed"


def test_measurements_of_older_code_are_marked(text: str) -> None:
    assert cells(text, "batch_norm")[0] == "batch_norm older code"
    assert text.count("older code</span>") == 2


def test_reasons_are_escaped(text: str) -> None:
    assert 'title="&lt;x_i&gt; &amp; x_j"' in text
    assert "<x_i>" not in text


def test_units_stand_in_the_heads(text: str) -> None:
    assert "saved bytes <small>bytes/element</small></th>" in text


def test_each_hardware_class_has_its_table_and_dates(built: Path) -> None:
    told = " ".join(Page(built / "capabilities.html").text.split())
    assert "On cpu-invented 4 methods, measured 2026-01-01 to 2026-01-02 · protocol 1" in told
    assert "On gpu-invented 1 method, measured 2026-01-01 · protocol 1" in told
    assert "Without a record here: layer_norm_chw." in told


def test_only_questions_of_yes_or_no_can_be_chosen(built: Path) -> None:
    tags = Page(built / "capabilities.html").tags
    boxes = [a["value"] for tag, a in tags if tag == "input" and a.get("type") == "checkbox"]
    assert boxes == ["batch_independent"]


def test_every_question_is_explained(text: str) -> None:
    for name in ("batch_independent", "saved_bytes"):
        assert f"<dd>Asks for {name}.</dd>" in text


@pytest.mark.parametrize("page", ["index.html", "methods/index.html", "methods/group_norm.html"])
def test_pages_lead_to_it(built: Path, page: str) -> None:
    root = "../" if "/" in page else ""
    links = Page(built / page).links
    # one in the navigation, one in the text of pages about methods
    assert links.count(f"{root}capabilities.html") == (2 if root else 1)


def test_a_methods_page_has_its_answers(built: Path) -> None:
    page = (built / "methods/proxy_norm.html").read_text(encoding="utf-8")
    assert "Measured, not declared, on cpu-invented, 2026-01-01." in page
    assert "without activation</th><td>no</td><td>alone</td>" in page
    assert "by an earlier version" in Page(built / "methods/batch_norm.html").text


def test_without_examinations_there_is_a_sentence_in_its_place(
    tmp_path: Path, catalogue_file: Path
) -> None:
    results = synthetic.store(tmp_path / "results", [synthetic.record()])
    site.build([results], tmp_path / "out", catalogue=catalogue_file)
    assert not (tmp_path / "out/capabilities.html").exists()
    pages = [Page(path) for path in sorted((tmp_path / "out").rglob("*.html"))]
    assert [link for page in pages for link in page.links if "capabilities" in link] == []
    assert "normbench capabilities" in Page(tmp_path / "out/methods/index.html").text
