"""The built site: whole, without network, and with nothing on it that the records do not say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import polars as pl
import pytest
import synthetic_records as synthetic
from parsed_page import Page, html
from synthetic_costs import everything

from normbench.leaderboard import equations, pages, site
from normbench.stats import t_interval


def test_every_link_leads_somewhere(built: Path) -> None:
    broken = []
    for path in html(built):
        page = Page(path)
        for link in [*page.links, *page.sources]:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = path.parent / parts.path if parts.path else path
            missing = not target.is_file()
            if missing or (parts.fragment and parts.fragment not in Page(target).ids):
                broken.append((path.name, link))
    assert broken == []


def test_nothing_is_loaded_from_the_network(built: Path) -> None:
    sources = [s for path in html(built) for s in Page(path).sources]
    assert [s for s in sources if urlsplit(s).scheme not in ("", "data")] == []


def test_the_only_links_outside_are_citations(built: Path) -> None:
    links = {link for path in html(built) for link in Page(path).links}
    assert {x for x in links if urlsplit(x).scheme} == {"https://arxiv.org/abs/1502.03167"}


def test_scripts_are_classic_and_fetch_nothing(built: Path) -> None:
    tags = [attrs for path in html(built) for tag, attrs in Page(path).tags if tag == "script"]
    texts = [path.read_text(encoding="utf-8") for path in sorted(built.glob("static/*.js"))]
    assert {a.get("type") for a in tags} == {None}
    assert len(texts) == len({a["src"] for a in tags})
    assert [t for t in texts if re.search(r"\bfetch\b|XMLHttpRequest|\bimport\b|eval", t)] == []


def test_style_sheet_loads_nothing(built: Path) -> None:
    assert not re.search(r"url\(|@import", (built / "static/site.css").read_text(encoding="utf-8"))


def test_ids_are_unique_on_every_page(built: Path) -> None:
    doubled = {p.name: ids for p in html(built) if len(ids := Page(p).ids) != len(set(ids))}
    assert doubled == {}


def test_every_table_has_a_caption_and_every_chart_a_description(built: Path) -> None:
    for path in html(built):
        tags = Page(path).tags
        names = [tag for tag, _ in tags]
        assert names.count("table") == names.count("caption")
        assert all(a.get("aria-label") for t, a in tags if t == "div" and a.get("role") == "img")


def test_numbers_on_the_page_are_those_of_the_records(built: Path) -> None:
    values = [
        r.metrics["test_accuracy"]
        for r in synthetic.study()
        if (r.cell.variant, r.cell.model, r.cell.batch_size)
        == ("batch_norm(eps=1e-05)", "nb_resnet10_1x1", 2)
    ]
    expected = t_interval(values).scaled(100)
    told = f"reaches {expected.mean:.1f} ±{expected.high - expected.mean:.1f}%"
    assert told in " ".join(Page(built / "index.html").text.split())


def test_what_eps_alone_repairs_is_said(built: Path) -> None:
    text = " ".join(Page(built / "index.html").text.split())
    assert "with eps 0.001 in place of 1e-05 and all else equal" in text


@pytest.mark.parametrize(
    "sentence",
    ["N·H·W at a slot", "Fewer than 5 seeds: shown, not ranked", "says how well a training went"],
)
def test_index_explains_itself(built: Path, sentence: str) -> None:
    assert sentence in " ".join(Page(built / "index.html").text.split())


@pytest.mark.parametrize(("large", "said"), [(6000, False), (38400, True)])
def test_unequal_samples_are_shown_and_said(
    tmp_path: Path, catalogue_file: Path, large: int, said: bool
) -> None:
    records = [
        synthetic.record(batch_size=size, metrics={"samples_seen": seen})
        for size, seen in ((2, 6000), (128, large))
    ]
    site.build(
        [synthetic.store(tmp_path / "results", records)], tmp_path / "out", catalogue=catalogue_file
    )
    text = " ".join(Page(tmp_path / "out" / "index.html").text.split())
    assert f"samples seen in training 6,000 {large:,}" in text
    assert ("compare methods within a column" in text) is said
    assert ("compare methods at one batch size" in text) is said


def test_failures_and_reasons_are_shown(built: Path) -> None:
    text = " ".join(Page(built / "index.html").text.split())
    assert "batch size 4: 1 of 3 diverged (loss was not finite at step 12)" in text


def test_the_suites_question_is_shown_escaped(built: Path) -> None:
    assert "Does &lt;it&gt; &amp; why?" in (built / "index.html").read_text(encoding="utf-8")


def test_every_record_is_listed(built: Path) -> None:
    text = Page(built / "records.html").text
    assert [r.record_id for r in everything() if r.record_id not in text] == []


def test_downloads_hold_every_record(built: Path) -> None:
    ids = {r.record_id for r in everything()}
    parquet = pl.read_parquet(built / "data/records.parquet")
    csv = pl.read_csv(built / "data/records.csv", infer_schema_length=None)
    assert (set(parquet["record_id"]), set(csv["record_id"])) == (ids, ids)
    assert "test_accuracy" in csv.columns


def test_method_page_has_equation_citation_and_parameters(built: Path) -> None:
    text = (built / "methods/group_norm.html").read_text(encoding="utf-8")
    wanted = ("<math", "Invented &lt;Paper&gt;", "@inproceedings", "added to the variance")
    wanted += ("Refuses what it cannot do.",)
    assert [part for part in wanted if part not in text] == []


def test_method_outside_the_catalogue_has_a_page(built: Path) -> None:
    assert "not in the catalogue" in Page(built / "methods/batch_renorm.html").text


def test_method_names_cannot_leave_the_folder() -> None:
    assert re.fullmatch(r"method-[0-9a-f]{16}", pages.slug("../../index"))


def test_equation_becomes_mathml_with_its_latex() -> None:
    text = equations.mathml(r"\frac{a}{b}")
    assert text.startswith('<math alttext="\\frac{a}{b}"')
    assert "<mfrac>" in text


def test_equation_that_cannot_be_converted_is_shown_as_written() -> None:
    assert equations.mathml(r"\left( a < ") == r"<code>\left( a &lt; </code>"


def test_leaderboard_never_imports_torch(root: Path) -> None:
    names = sorted(p.stem for p in (root / "leaderboard").glob("*.py") if p.stem != "__init__")
    imports = "".join(f"import normbench.leaderboard.{name}\n" for name in names)
    code = f"import sys\n{imports}print([m for m in ('torch', 'timm') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
