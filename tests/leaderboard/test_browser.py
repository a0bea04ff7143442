"""Scripts of capabilities.html, and narrow pages, in a browser; skipped where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")


@pytest.fixture(scope="module")
def page(built: Path) -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        except sync_api.Error as error:
            pytest.skip(f"no browser: {error.message.splitlines()[0]}")
        shown = browser.new_page()
        errors: list[str] = []
        shown.on("pageerror", lambda error: errors.append(str(error)))
        shown.goto((built / "capabilities.html").as_uri())
        yield shown
        assert errors == []
        browser.close()


def methods(page: Any) -> list[str]:
    """Methods of the first table, as far as they are to be seen, from the top."""
    rows = page.locator("table.matrix").first.locator("tbody tr:not([hidden]) th a")
    return list(rows.all_inner_texts())


def test_only_methods_that_answer_yes_are_left(page: Any) -> None:
    assert page.inner_text("#shown") == "5 of 5"
    page.check("input[value=batch_independent]")
    assert methods(page) == ["group_norm", "proxy_norm"]
    assert page.inner_text("#shown") == "2 of 5"
    page.click("text=Show all")
    page.wait_for_function("document.getElementById('shown').textContent === '5 of 5'")


def test_a_heading_sorts_and_sorts_back(page: Any) -> None:
    by_number = ["batch_renorm", "batch_norm", "group_norm", "proxy_norm"]
    head = page.locator("th[data-probe=saved_bytes]").first
    head.locator("button").click()
    assert (methods(page), head.get_attribute("aria-sort")) == (by_number, "ascending")
    head.locator("button").click()
    assert (methods(page), head.get_attribute("aria-sort")) == (by_number[::-1], "descending")
    page.locator("th[data-probe='']").first.locator("button").click()
    assert methods(page) == sorted(by_number)
    assert head.get_attribute("aria-sort") is None


def test_yes_comes_first_and_words_stay_last(page: Any) -> None:
    button = page.locator("th[data-probe=batch_independent] button").first
    button.click()
    assert methods(page) == ["group_norm", "proxy_norm", "batch_norm", "batch_renorm"]
    button.click()
    assert methods(page) == ["batch_norm", "group_norm", "proxy_norm", "batch_renorm"]


@pytest.mark.parametrize("name", ["speed", "memory", "tradeoff", "methods/group_norm"])
def test_costs_need_no_network_and_fit_a_telephone(page: Any, built: Path, name: str) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 400, "height": 800})
    page.goto((built / f"{name}.html").as_uri())
    wide = page.evaluate("document.documentElement.scrollWidth")
    assert (wide, [url for url in asked if not url.startswith(("file:", "data:"))]) == (400, [])
