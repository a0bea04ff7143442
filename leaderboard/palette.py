"""Line styles that can be told apart three ways: by colour, by dash and by marker.

The colours keep a contrast of at least 3:1 with white and with the dark page (a test checks it),
so one drawing serves both.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

COLOURS = (
    "#2f7de1", "#d9480f", "#0f8f5f", "#a34fd9", "#a67c00", "#d6336c", "#0b8a9e", "#7d7468",
)  # fmt: skip
DASHES: tuple[tuple[int, ...], ...] = ((1, 0), (7, 3), (2, 2), (9, 3, 2, 3), (4, 2))
MARKERS = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right")
MUTED = "#8b939c"


@dataclass(frozen=True, slots=True)
class Style:
    """How one variant is drawn on every chart of a site."""

    colour: str
    dash: tuple[int, ...]
    marker: str


def assign(variants: Iterable[str]) -> dict[str, Style]:
    """A style for each variant, in the order given; 280 of them before one repeats."""
    return {
        name: Style(COLOURS[i % len(COLOURS)], DASHES[i % len(DASHES)], MARKERS[i % len(MARKERS)])
        for i, name in enumerate(dict.fromkeys(variants))
    }
