"""What a page of the site holds, for tests."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path


class Page(HTMLParser):
    """Links, sources, ids, tags and text of one page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.sources: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.ids += [found["id"]] if found.get("id") else []
        target = found.get("href") or found.get("xlink:href")
        if target is not None:
            (self.sources if tag in ("link", "use", "image") else self.links).append(target)
        self.sources += [found["src"]] if found.get("src") else []

    def handle_data(self, data: str) -> None:
        self.text += data


def html(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.html"))
