"""How `normbench coverage` looks: a table for the terminal, a page for docs/, JSON."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from normbench.engine.isolation import Limits
    from normbench.surgery.coverage import Coverage

HEADER = (
    "family", "model", "M", "norms", "slots", "group_norm", "proxy_norm", "act", "input", "runs",
)  # fmt: skip
LEFT = (0, 1, 3, 8, 9)

LEGEND = """\
One model stands for each family, which is a module of timm: the smallest that has a norm (models
that timm made for its own tests come last; ties go by name). Each method is swapped into a fresh
one, and the swap proves itself: no norm is left unless it is named here, every new layer runs,
and so does backward. Another model: `normbench coverage --models NAME`.

| column | meaning |
|---|---|
| M | millions of parameters |
| norms | classes of the normalizations found, and how many of each |
| slots | places where a normalization stands |
| group_norm, proxy_norm | slots in which that method stands after a swap |
| act | slots followed directly by an activation / activations that proxy_norm took over |
| input | what the model was run on after the swap, batch first |
| runs | what was proved on it: forward and backward in training, or why not |

Two things that look like norms are none here and stay: global response norm (ConvNeXt V2), which
adds its result to its input, and the unit-length queries and keys of some attentions.
"""


def written(rows: Sequence[Coverage], style: str, pattern: str, limits: Limits, train: bool) -> str:
    """The rows as `table`, `markdown` or `json`, with a final newline."""
    if style == "json":
        return _json(rows)
    if style == "markdown":
        return "\n".join(_page(rows, _command(pattern, limits, train))) + "\n"
    return _table(rows) + "\n\n" + "\n".join(_summary(rows)) + "\n"


def _versions() -> dict[str, str]:
    import timm
    import torch

    import normbench

    torch_version = str(torch.__version__).partition("+")[0]
    return {"normbench": normbench.__version__, "timm": timm.__version__, "torch": torch_version}


def _command(pattern: str, limits: Limits, train: bool) -> str:
    words = ["normbench coverage"]
    if pattern != "*":
        words.append(f"--models '{pattern}'")
    words.append("--format markdown")
    if train:
        words.append("--train")
    default = type(limits)()
    if limits.seconds != default.seconds:
        words.append(f"--seconds {limits.seconds:g}")
    if limits.gigabytes != default.gigabytes:
        words.append(f"--memory {limits.gigabytes:g}")
    return " ".join(words)


def _json(rows: Sequence[Coverage]) -> str:
    content = {
        "versions": _versions(),
        "families": [
            dataclasses.asdict(row) | {"status": row.status, "reason": row.reason} for row in rows
        ],
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _table(rows: Sequence[Coverage]) -> str:
    from normbench.summary import format_table

    return format_table(HEADER, [_cells(row) for row in rows], LEFT)


def _cells(row: Coverage) -> list[str]:
    """One row as text, in the order of HEADER."""
    if row.status == "no norm":
        return [row.family, "", "", "none", "0", "", "", "", "", "no norm"]
    paired = row.swaps.get("proxy_norm")
    shape = next((done.input_shape for done in row.swaps.values() if done.input_shape), ())
    return [
        row.family,
        row.model,
        "" if row.parameters is None else f"{row.parameters / 1e6:.1f}",
        ", ".join(f"{count} {kind}" for kind, count in row.kinds.items()),
        str(row.found),
        *(_replaced(row, method) for method in ("group_norm", "proxy_norm")),
        "" if paired is None or paired.error else f"{paired.paired}/{paired.consumed}",
        "×".join(map(str, shape)),
        _runs(row),
    ]


def _replaced(row: Coverage, method: str) -> str:
    done = row.swaps.get(method)
    if done is None or done.error:
        return "failed" if done else ""
    return f"{done.replaced} {done.variant.removeprefix(method)}".rstrip()


def _runs(row: Coverage) -> str:
    if row.status == "failed":
        return row.reason
    evaluation = [method for method, done in row.swaps.items() if done.evaluation_only]
    steps = [method for method, done in row.swaps.items() if done.losses]
    if evaluation:
        return f"evaluation only with {' and '.join(evaluation)}"
    return "training steps" if len(steps) == len(row.swaps) else "forward, backward"


def _summary(rows: Sequence[Coverage]) -> list[str]:
    """How many families, with a norm, replaced in full; every exception explained."""
    count = Counter(row.status for row in rows)
    with_norm = len(rows) - count["no norm"]
    lines = [
        f"{_plural(len(rows), 'family', 'families')}, {with_norm} with a norm: "
        f"{count['full']} replaced in full, {count['partial']} in part, {count['failed']} failed."
    ]
    if without := [row.family for row in rows if row.status == "no norm"]:
        lines.append(f"Without any norm in any member: {', '.join(without)}.")
    exceptions = [row for row in rows if row.status in ("partial", "failed")]
    if exceptions:
        lines += ["", "Exceptions:", ""]
        lines += [f"- {row.family} ({row.model}): {row.reason}" for row in exceptions]
    if other := list(_other_parameters(rows)):
        lines += [
            "",
            "Replaced in full with other parameters than the method's defaults:",
            "",
            *other,
        ]
    return lines


def _other_parameters(rows: Sequence[Coverage]) -> Iterator[str]:
    for row in rows:
        for done in row.swaps.values():
            if done.instead and not done.error:
                yield f"- {row.family} ({row.model}), {done.variant}: {done.instead}"


def _plural(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"


def _page(rows: Sequence[Coverage], command: str) -> Iterator[str]:
    versions = ", ".join(f"{name} {version}" for name, version in _versions().items())
    yield f"Made by `{command}` with {versions}."
    yield ""
    yield "# timm's model families"
    yield ""
    yield from _summary(rows)
    yield ""
    yield from LEGEND.splitlines()
    yield ""
    yield _markdown_row(HEADER)
    yield _markdown_row(["---" if i in LEFT else "--:" for i in range(len(HEADER))])
    yield from (_markdown_row(_cells(row)) for row in rows)
    if kept := list(_kept(rows)):
        yield ""
        yield "## Activations that stay where they are"
        yield ""
        yield "A method that owns its activation (proxy_norm) is put there without one, since:"
        yield ""
        yield from kept


def _kept(rows: Sequence[Coverage]) -> Iterator[str]:
    for row in rows:
        done = row.swaps.get("proxy_norm")
        if done is not None and done.unconsumed:
            slot, reason = done.unconsumed[0]
            first = "" if len(done.unconsumed) == 1 else ", first"
            slots = _plural(len(done.unconsumed), "slot", "slots")
            yield f"- {row.family} ({row.model}), {slots}{first} {slot}: {reason}"


def _markdown_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
