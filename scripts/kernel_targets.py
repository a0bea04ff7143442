"""Records of kernels and steps by case, and the targets they are held against."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from kernel_cells import BATCHES, Slot

from normbench.cells import Record

LARGE = 25_000_000
"""Elements from which a kernel should reach nearly a copy's bandwidth."""


@dataclass(frozen=True, order=True, slots=True)
class Key:
    """A case, whichever peers it was timed with."""

    method: str
    form: str
    channels: int
    size: int
    batch: int
    layout: str = "nhwc"
    precision: str = "bf16"

    @property
    def elements(self) -> int:
        """Values of the activation."""
        return self.batch * self.channels * self.size**2


class Bench:
    """The records of one hardware class, found by case; the latest first."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._cases: dict[Key, list[Record]] = defaultdict(list)
        self.steps: dict[tuple[str, int], list[Record]] = defaultdict(list)
        for record in sorted(records, key=lambda r: r.started_at, reverse=True):
            cell = record.cell
            if record.fallback:  # the kernels did not run
                continue
            if cell.task == "step":
                self.steps[cell.model, cell.batch_size].append(record)
            else:
                shape = (cell.config["channels"], cell.config["height"], cell.batch_size)
                what = (cell.config["layout"], cell.precision)
                self._cases[Key(cell.method, cell.config["form"], *shape, *what)].append(record)

    def cases(self) -> list[Key]:
        """All cases with a record."""
        return list(self._cases)

    def figure(self, key: Key, name: str) -> float | None:
        """The latest value of a metric; None where no record has it."""
        found = _latest(self._cases.get(key, []), name)
        return None if found is None else found[0]

    def step(self, model: str, batch: int, name: str) -> float | None:
        """The same of a training step."""
        found = _latest(self.steps.get((model, batch), []), name)
        return None if found is None else found[0]

    def status(self, key: Key) -> str:
        """How the latest attempt ended; empty if there was none."""
        found = self._cases.get(key)
        return found[0].status if found else ""

    def network(
        self, slots: Sequence[Slot], batch: int, part: str, peer: str = ""
    ) -> tuple[float, float] | None:
        """Seconds of all slots in CUDA graphs, ours and the peer's, both from the same records.

        None unless all are known.
        """
        ours = theirs = 0.0
        name = f"graph_{part}_seconds"
        wanted = (name, f"{peer}_{name}" if peer else name)
        for slot in slots:
            key = Key("batch_norm_triton", slot.form, slot.channels, slot.size, batch)
            found = _latest(self._cases.get(key, []), *wanted)
            if found is None:
                return None
            ours, theirs = ours + slot.count * found[0], theirs + slot.count * found[1]
        return ours, theirs

    def failures(self) -> Iterator[tuple[str, str]]:
        """Cells and peers that gave no figures, each reason once."""
        seen: set[str] = set()
        for record in [r for rs in (*self._cases.values(), *self.steps.values()) for r in rs]:
            said = [(f"{record.status}, {record.cell.variant}", record.reason)]
            for trial in record.trials:
                said.append((str(trial["config"]["contestant"]), str(trial.get("reason", ""))))
            for who, reason in said:
                if reason and reason not in seen:
                    seen.add(reason)
                    yield who, reason


def _latest(records: Iterable[Record], *names: str) -> list[float] | None:
    """The metrics of the first record that has all of them."""
    for record in records:
        if record.status == "ok" and all(name in record.metrics for name in names):
            return [record.metrics[name] for name in names]
    return None


@dataclass(frozen=True, slots=True)
class Target:
    """A bar, and the figures that must all pass it; None stands for one not measured."""

    what: str
    bar: float
    figures: list[float | None]
    at_most: bool = False

    def row(self) -> str:
        """One line of the table: the worst figure, how many are known, and the verdict."""
        known = [figure for figure in self.figures if figure is not None]
        sign = "≤" if self.at_most else "≥"
        if not known:
            return f"| {self.what} | {sign} {self.bar:g} | unmeasured | open |"
        worst = max(known) if self.at_most else min(known)
        passed = worst <= self.bar if self.at_most else worst >= self.bar
        complete = len(known) == len(self.figures)
        verdict = ("met" if complete else "open") if passed else "**missed**"
        count = "" if complete else f" ({len(known)} of {len(self.figures)} measured)"
        return f"| {self.what} | {sign} {self.bar:g} | {worst:.3g}{count} | {verdict} |"


def targets(bench: Bench, slots: Sequence[Slot]) -> str:
    """The table of targets."""
    large = [batch for batch in BATCHES if batch >= 32]
    every = [
        Key("batch_norm_triton", slot.form, slot.channels, slot.size, batch)
        for batch in BATCHES
        for slot in slots
    ]

    def sums(peer: str, part: str) -> list[float | None]:
        pairs = [bench.network(slots, batch, part, peer) for batch in large]
        return [None if pair is None else pair[1] / pair[0] for pair in pairs]

    def inverse(model: str, batches: Iterable[int]) -> list[float | None]:
        ratios = [bench.step(model, batch, "eager_saved_ratio") for batch in batches]
        return [None if ratio is None else 1 / ratio for ratio in ratios]

    figure = bench.figure
    biggest = [key for key in every if key.elements >= LARGE]
    proxy = [key for key in bench.cases() if key.method == "proxy_norm_triton"]
    shares = [
        figure(k, f"graph_{p}_share_of_copy") for k in biggest for p in ("forward", "backward")
    ]
    rows = [
        Target("share of a copy's bandwidth, each shape of 25 M elements or more", 0.9, shares),
        Target("eager / ours, all slots, batch 32 and more", 1.4, sums("eager", "both")),
        Target("torch.compile / ours, the same", 1.15, sums("compiled", "both")),
        Target("torch.compile / ours, backward alone", 1.3, sums("compiled", "backward")),
        Target("eager / ours, ProxyNorm, each shape", 4.0,
               [figure(k, "eager_graph_both_ratio") for k in proxy] or [None]),
        Target("eager / ours, each shape and batch", 1.0,
               [figure(k, "eager_graph_both_ratio") for k in every]),
        Target("saved for backward, ours / eager, EfficientNet-B0", 0.7,
               inverse("efficientnet_b0", (32,)), at_most=True),
        Target("saved for backward, ours / eager, ResNet-50", 1.0,
               inverse("resnet50", BATCHES), at_most=True),
    ]  # fmt: skip
    lines = ["| target (the worst case counts; CUDA graphs, bf16) | bar | measured | |",
             "|---|---|---|---|", *(row.row() for row in rows)]  # fmt: skip
    return "\n".join(lines)
