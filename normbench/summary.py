"""Records as a table for the terminal: a row per variant, a column per batch size.

Plain text from plain records: no Polars, no colours, so that it reads the same in a log.
"""

from __future__ import annotations

import math
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from normbench.cells import (
    MAIN_METRICS,
    STATUSES,
    Record,
    canonical_json,
    fell_back,
    settings,
    with_data,
)
from normbench.spool import FAILED
from normbench.stats import Interval, t_interval

_GAP = "  "
_LABEL_WIDTH = 34

_MEANING = {
    "ratio": "time / batch_norm's",
    "saved_ratio": "kept for the backward / batch_norm's",
}

EAGER = "(eager)"
"""Stands behind a variant that ran its eager path in place of its kernels."""


def table(records: Sequence[Record], metric: str | None = None, width: int | None = None) -> str:
    """The metric by variant and batch size, with t intervals over seeds.

    One seed has its record's own interval, where there is one. One block per task, model and
    dataset; settings that would mix what cannot be compared (hardware
    class, protocol, precision, training, state of the data) open blocks of their own and are named
    in the title. A mean rests on `ok` runs only; other statuses are counted beside it, `diverged
    1/3`. Of a cell measured more than once the latest record counts, and a last line says so. Where
    a method ran its eager path in place of its kernels the row is marked, and a line says why.

    Args:
        records: finished records, of any suite.
        metric: name of a metric; accuracies are shown in percent. None: of each task its main one,
            and statuses alone where it has none.
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
        _block(title, block, metric or MAIN_METRICS.get(block[0].cell.task, ""), columns)
        for title, block in zip(titles, blocks.values(), strict=True)
    ]
    if older := len(records) - len(latest):
        one = older == 1
        parts.append(f"{older} older record{' is' if one else 's are'} superseded and not shown.")
    eager = fell_back((record.cell.method, record.fallback) for record in latest)
    parts += [f"{EAGER}: {sentence}." for sentence in eager]
    return "\n\n".join(parts)


def figure(record: Record) -> str:
    """A record's main figure in words, `test accuracy 94.8%` or `ratio 1.23 [1.20, 1.27]`.

    Empty where there is none.
    """
    metric = MAIN_METRICS.get(record.cell.task, "")
    percent = metric.endswith("accuracy")
    interval = _interval([record], metric, percent)
    if interval is None:
        return ""
    return f"{metric.replace('_', ' ')} {_without_n(interval)}{'%' if percent else ''}"


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
    """Model, dataset and task, and whatever else tells blocks of the same three apart."""
    titles = []
    for own in blocks:
        names = ("model", "dataset", "task")
        alike = [other for other in blocks if all(other[name] == own[name] for name in names)]
        options = dict.fromkeys(name for other in alike for name in other)
        differing = [n for n in options if len({canonical_json(o.get(n)) for o in alike}) > 1]
        extra = "".join(f", {name}={own.get(name)}" for name in differing)
        where = "" if own["dataset"] == "none" else f" on {own['dataset']}"
        what = "" if own["task"] in ("accuracy", own["model"]) else f", {own['task']}"
        titles.append(f"{own['model']}{where}{what}{extra}")
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
    own = any(interval and interval.method == "rounds" for interval in intervals.values())
    heading = title + (f"\n{_explained(metric, unit, own)}" if metric else "")
    if brief:
        heading += f", n={next(iter(shared_n))} seeds"
    return "\n\n".join([heading + "\n" + body[0], *body[1:]])


def _explained(metric: str, unit: str, own: bool) -> str:
    meaning = f" ({_MEANING[metric]})" if metric in _MEANING else ""
    one = "; of one seed [95% interval over rounds]" if own else ""
    return f"{unit}{meaning}: mean ± half of the 95% t interval over seeds{one}"


def _interval(records: Sequence[Record], metric: str, percent: bool) -> Interval | None:
    """Over seeds; of a single one its record's own interval, where it has one."""
    measured = [
        r for r in records if r.status == "ok" and math.isfinite(r.metrics.get(metric, math.nan))
    ]
    if not measured:
        return None
    values = [r.metrics[metric] for r in measured]
    found = t_interval(values)
    low, high = (measured[0].metrics.get(f"{metric}_{end}", math.nan) for end in ("low", "high"))
    if len(values) == 1 and math.isfinite(low) and math.isfinite(high):
        found = Interval(values[0], low, high, n=1, level=0.95, method="rounds")
    return found.scaled(100 if percent else 1)


def _cell(interval: Interval | None, records: Sequence[Record], metric: str, brief: bool) -> str:
    """`94.8 ±0.4 (n=2)` over `diverged 1/3`; empty where there is no record."""
    lines = []
    if interval is not None:
        lines.append(_without_n(interval) if brief else str(interval))
    counts = Counter(record.status for record in records)
    for status in STATUSES:
        count = counts[status]
        if count and (status != "ok" or not metric):
            everywhere = status in ("unsupported", "ok") and count == len(records)
            lines.append(status if everywhere else f"{status} {count}/{len(records)}")
    without = counts["ok"] - (interval.n if interval else 0)
    if without and metric:
        lines.append(f"no {metric} {without}/{len(records)}")
    return "\n".join(lines)


def _without_n(interval: Interval) -> str:
    return str(interval).rpartition(" (n=")[0]


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
