"""Records as a table for the terminal: a row per variant, a column per batch size.

Plain text from plain records: no Polars, no colours, so that it reads the same in a log.
"""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normbench.cells import STATUSES, Record, canonical_json, fell_back, settings, with_data
from normbench.spool import FAILED
from normbench.stats import Interval, t_interval

_GAP = "  "
_LABEL_WIDTH = 34

EAGER = "(eager)"
"""Stands behind a variant that ran its eager path in place of its kernels."""


def table(
    records: Sequence[Record], metric: str = "test_accuracy", width: int | None = None
) -> str:
    """The metric by variant and batch size, with t intervals over seeds.

    One block per model and dataset; settings that would mix what cannot be compared (hardware
    class, protocol, precision, training, state of the data) open blocks of their own and are named
    in the title. A mean rests on `ok` runs only; other statuses are counted beside it, `diverged
    1/3`. Of a cell measured more than once the latest record counts, and a last line says so. Where
    a method ran its eager path in place of its kernels the row is marked, and a line says why.

    Args:
        records: finished records, of any suite.
        metric: name of a metric; accuracies are shown in percent.
        width: characters a line may have; wider tables are continued below. None: as many as the
            terminal has, 80 to 120.

    Returns:
        The text, without a final newline; one sentence if there is nothing to show.
    """
    latest = with_data(latest_records(records))
    if not latest:
        return "No records to summarise."
    blocks: dict[str, list[Record]] = {}
    for record in latest:
        blocks.setdefault(canonical_json(_settings(record)), []).append(record)
    titles = _titles([_settings(block[0]) for block in blocks.values()])
    columns = terminal_width() if width is None else width
    parts = [
        _block(title, block, metric, columns)
        for title, block in zip(titles, blocks.values(), strict=True)
    ]
    if older := len(records) - len(latest):
        one = older == 1
        parts.append(f"{older} older record{' is' if one else 's are'} superseded and not shown.")
    eager = fell_back((record.cell.method, record.fallback) for record in latest)
    parts += [f"{EAGER}: {sentence}." for sentence in eager]
    return "\n\n".join(parts)


def latest_records(records: Iterable[Record]) -> list[Record]:
    """The latest record of each configuration and hardware class, in the order first seen.

    Measurements by older method code or another environment are superseded, not averaged in. A
    failed attempt (`error`, `timeout`) supersedes nothing that came to an end, a run of the eager
    path no run of the kernels.
    """
    latest: dict[str, Record] = {}
    for record in records:
        work = record.cell.to_json()
        del work["suite"]
        key = canonical_json([work, record.protocol, record.hardware_class])
        if key not in latest or _standing(record) > _standing(latest[key]):
            latest[key] = record
    return list(latest.values())


def _standing(record: Record) -> tuple[bool, bool, str]:
    return record.status not in FAILED, not record.fallback, record.started_at


def label(record: Record) -> str:
    """The variant, marked where its eager path ran: the two paths are never averaged."""
    return f"{record.cell.variant} {EAGER}" if record.fallback else record.cell.variant


def terminal_width() -> int:
    """Columns of the terminal, 80 to 120; 120 where there is none."""
    return min(120, max(80, shutil.get_terminal_size((120, 24)).columns))


def format_table(
    header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)
) -> str:
    """Columns aligned with spaces under a ruled header; cells may have several lines.

    Args:
        header: one name per column.
        rows: the cells, as text.
        left: indices of the columns that are aligned left; the others are aligned right.
    """
    split = [[cell.split("\n") for cell in row] for row in [header, *rows]]
    widths = [max(len(line) for row in split for line in row[i]) for i in range(len(header))]
    lines = []
    for number, row in enumerate(split):
        for level in range(max(map(len, row))):
            cells = [cell[level] if level < len(cell) else "" for cell in row]
            lines.append(_aligned(cells, widths, left))
        if number == 0:
            lines.append(_GAP.join("─" * width for width in widths))
    return "\n".join(lines)


def _aligned(cells: Sequence[str], widths: Sequence[int], left: Sequence[int]) -> str:
    padded = [
        cell.ljust(width) if i in left else cell.rjust(width)
        for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return _GAP.join(padded).rstrip()


def _settings(record: Record) -> dict[str, Any]:
    """What two records must share to stand in one block, flat."""
    cell = record.cell
    flat = {
        "model": cell.model,
        "dataset": cell.dataset,
        "task": cell.task,
        "precision": cell.precision,
        "hardware": record.hardware_class,
        "protocol": record.protocol,
        "data fingerprint": record.data_fingerprint,
    }
    work = settings(cell)
    for prefix, options in (
        ("model.", cell.model_args), ("dataset.", work["dataset_args"]), ("", work["config"]),
    ):  # fmt: skip
        flat |= {f"{prefix}{name}": value for name, value in options.items()}
    return flat


def _titles(blocks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Model and dataset, and whatever else tells blocks of the same model and dataset apart."""
    titles = []
    for own in blocks:
        here = (own["model"], own["dataset"])
        alike = [other for other in blocks if (other["model"], other["dataset"]) == here]
        names = dict.fromkeys(name for other in alike for name in other)
        differing = [n for n in names if len({canonical_json(o.get(n)) for o in alike}) > 1]
        extra = "".join(f", {name}={own.get(name)}" for name in differing)
        titles.append(f"{here[0]} on {here[1]}{extra}")
    return titles


def _block(title: str, records: Sequence[Record], metric: str, width: int) -> str:
    percent = metric.endswith("accuracy")
    by_place: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        by_place.setdefault((label(record), record.cell.batch_size), []).append(record)
    sizes = sorted({size for _, size in by_place})
    variants = list(dict.fromkeys(variant for variant, _ in by_place))
    intervals = {place: _interval(group, metric, percent) for place, group in by_place.items()}
    shared_n = {interval.n for interval in intervals.values() if interval}
    unit = f"{metric}{' (%)' if percent else ''}"
    for brief in (False, True):  # where n is the same everywhere it may move into the heading
        rows = [
            [wrapped(variant)]
            + [_cell(intervals.get((variant, s)), by_place.get((variant, s), ()), metric, brief)
               for s in sizes]
            for variant in variants
        ]  # fmt: skip
        body = fitted(["batch size", *map(str, sizes)], rows, width)
        if len(body) == 1 or len(shared_n) != 1:
            break
    n = f", n={next(iter(shared_n))} seeds" if brief else ""
    heading = f"{title}\n{unit}: mean ± half of the 95% t interval over seeds{n}"
    return "\n\n".join([heading + "\n" + body[0], *body[1:]])


def _interval(records: Sequence[Record], metric: str, percent: bool) -> Interval | None:
    values = [r.metrics[metric] for r in records if r.status == "ok" and metric in r.metrics]
    finite = [value for value in values if value - value == 0]
    return t_interval(finite).scaled(100 if percent else 1) if finite else None


def _cell(interval: Interval | None, records: Sequence[Record], metric: str, brief: bool) -> str:
    """`94.8 ±0.4 (n=2)` over `diverged 1/3`; empty where there is no record."""
    lines = []
    if interval is not None:
        text = str(interval)
        lines.append(text.rpartition(" (n=")[0] if brief else text)
    counts = Counter(record.status for record in records)
    for status in STATUSES:
        count = counts[status]
        if status != "ok" and count:
            everywhere = status == "unsupported" and count == len(records)
            lines.append(status if everywhere else f"{status} {count}/{len(records)}")
    without = counts["ok"] - (interval.n if interval else 0)
    if without:
        lines.append(f"no {metric} {without}/{len(records)}")
    return "\n".join(lines)


def fitted(header: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """The table, or several with the label column repeated where one would be too wide.

    Args:
        header: one name per column, the label's first.
        rows: the cells, as text.
        width: characters a line may have.
    """
    widths = [
        max(len(line) for row in [header, *rows] for line in row[i].split("\n"))
        for i in range(len(header))
    ]
    groups: list[list[int]] = [[]]
    used = widths[0]
    for column in range(1, len(header)):
        step = len(_GAP) + widths[column]
        if groups[-1] and used + step > width:
            groups.append([])
            used = widths[0]
        groups[-1].append(column)
        used += step
    return [
        format_table([header[0], *(header[c] for c in group)],
                     [[row[0], *(row[c] for c in group)] for row in rows])
        for group in groups
    ]  # fmt: skip


def wrapped(variant: str) -> str:
    """A long variant on several lines, broken at spaces."""
    return "\n".join(
        textwrap.wrap(variant, _LABEL_WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    )
