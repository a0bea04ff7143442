"""The shape of suites that measure costs: tasks `throughput` and `memory`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, model_validator
from pydantic_core import PydanticCustomError

from normbench.suites.parts import (
    Count,
    Many,
    MethodEntry,
    ModelEntry,
    Name,
    Named,
    OneOrMany,
    Part,
    Point,
    Positive,
    Seed,
    Text,
    Unique,
)

Precision = Literal["fp32", "tf32", "bf16", "fp16"]
Layout = Literal["nchw", "nhwc"]
Mode = Literal["train", "forward", "inference", "inference_folded"]

COST_TASKS = ("throughput", "memory")
_OF_THROUGHPUT = ("modes", "compile")


class CostModelEntry(ModelEntry):
    """A timm model; a bare string is its name."""

    image_size: Count | None = Field(
        default=None, description="instead of the suite's, for this model"
    )


class CostExclusion(Part):
    """Leaves out the cells that match every key given here; a list matches any of its values."""

    method: OneOrMany[Text] | None = Field(
        default=None, description="a name (all its variants) or name(key=value)"
    )
    model: OneOrMany[Text] | None = None
    batch_size: OneOrMany[Count] | None = None
    seed: OneOrMany[Seed] | None = None
    precision: OneOrMany[Precision] | None = None
    layout: OneOrMany[Layout] | None = None
    mode: OneOrMany[Mode] | None = None
    compile: OneOrMany[StrictBool] | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> CostExclusion:
        if not self.model_dump(exclude_none=True):
            raise PydanticCustomError("exclusion", "an empty entry would leave out every cell")
        return self


class CostSuite(Part):
    """Which variants cost what in which models, on random images."""

    name: Name
    question: Text = Field(description="the question that the suite answers")
    task: Literal["throughput", "memory"] = Field(description="what a cell measures")
    methods: Many[Annotated[MethodEntry, Named("name")]]
    models: Many[Annotated[CostModelEntry, Named("name")]]
    batch_sizes: Unique[Count] = Field(description="samples in one forward pass")
    image_size: Count = Field(description="height and width of the random images, in pixels")
    precisions: Unique[Precision] = ("fp32",)
    layouts: Unique[Layout] = Field(default=("nchw",), description="nhwc is channels last")
    modes: Unique[Mode] = Field(
        default=("train",),
        description="throughput only: a training step, a training forward, inference as it is or "
        "with every normalization folded that can be",
    )
    compile: Unique[StrictBool] = Field(
        default=(False,), description="throughput only: both models by torch.compile"
    )
    budgets_gib: Unique[Positive] = Field(
        default=(4.0,), description="memory only: budgets to find the largest batch for"
    )
    threads: Count = Field(default=1, description="CPU threads of a cell, on as many cores")
    seeds: Unique[Seed] = Field(
        default=(0,), description="of weights and images; each is measured in rounds of its own"
    )
    device: Literal["any", "cpu", "cuda"] = Field(
        default="any", description="where the suite makes sense; elsewhere it is refused"
    )
    timeout_seconds: Positive = Field(
        default=600.0, description="wall time after which a cell counts as `timeout`"
    )
    exclude: Annotated[tuple[CostExclusion, ...], Field(strict=False)] = ()

    @model_validator(mode="after")
    def _of_this_task(self) -> CostSuite:
        foreign = ("budgets_gib",) if self.task == "throughput" else _OF_THROUGHPUT
        if given := sorted(self.model_fields_set.intersection(foreign)):
            raise PydanticCustomError(
                "foreign", "{key} says nothing to task {task}: remove it",
                {"key": given[0], "task": self.task},
            )  # fmt: skip
        return self

    def points(self, model: CostModelEntry) -> Iterator[Point]:
        """The grid beside methods and seeds."""
        for precision, config in self._settings(model.image_size or self.image_size):
            for batch_size in model.batch_sizes or self.batch_sizes:
                yield Point("none", {}, batch_size, precision, config)

    def _settings(self, image_size: int) -> Iterator[tuple[str, dict[str, Any]]]:
        common = {
            "image_size": image_size, "threads": self.threads,
            "timeout_seconds": self.timeout_seconds,
        }  # fmt: skip
        for precision, layout in itertools.product(self.precisions, self.layouts):
            config = {"layout": layout, **common}
            if self.task == "memory":
                yield precision, config | {"budgets_gib": list(self.budgets_gib)}
                continue
            for compiled, mode in itertools.product(self.compile, self.modes):
                yield precision, config | {"mode": mode, "compile": compiled}
