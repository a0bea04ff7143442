"""The shape of a suite file, as pydantic models: strict types, no unknown keys.

The models are the one place where keys, types, bounds, defaults and their descriptions stand; the
JSON Schema for editors is made from them. What needs the catalogue, timm or the data sources is
checked in checks.py. Here are the suites that train; those that measure costs are in
cost_schema.py, and what both are made of in parts.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, TypeAdapter, model_validator
from pydantic_core import PydanticCustomError

from normbench.suites.cost_schema import CostSuite
from normbench.suites.parts import (
    Claim,
    Count,
    Exclusion,
    Fraction,
    Many,
    MethodEntry,
    ModelEntry,
    Name,
    Named,
    Number,
    Part,
    Point,
    Positive,
    Seed,
    Share,
    Text,
    Unique,
    Whole,
)

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "constant"]
Decay = Annotated[Number, Field(ge=0)]
Momentum = Annotated[Number, Field(ge=0, lt=1)]


class DatasetEntry(Part):
    """A dataset with options; a bare string is its source."""

    source: Text = Field(
        description="embedded:NAME, hf:OWNER/NAME, parquet:PATH, imagefolder:PATH, synthetic:SHAPE"
    )
    train_samples: Count | None = Field(default=None, description="train on a subset of this size")
    image_size: Count | None = Field(default=None, description="resize to this many pixels")
    channels: Literal[1, 3] | None = Field(default=None, description="instead of the images' own")
    split_seed: Seed | None = Field(default=None, description="of the splits, not of the run")
    streaming: StrictBool | None = Field(default=None, description="read images while training")
    memory_limit_mb: Positive | None = Field(default=None, description="larger sets stream")
    augment: StrictBool | None = Field(default=None, description="timm's training augmentation")
    workers: Whole | None = Field(default=None, description="loader processes when streaming")
    image_column: Text | None = Field(default=None, description="column of the images")
    label_column: Text | None = Field(default=None, description="column of the labels")
    train_split: Text | None = Field(default=None, description="name of the training split")
    validation_split: Text | None = Field(default=None, description="name of the validation split")
    test_split: Text | None = Field(default=None, description="name of the test split")
    validation_fraction: Share | None = Field(
        default=None, description="share of training where the source has no validation split"
    )
    test_fraction: Share | None = Field(
        default=None, description="share where the source has one single split"
    )
    config: Text | None = Field(default=None, description="configuration on the Hub")
    revision: Text | None = Field(default=None, description="revision on the Hub")
    num_classes: Count | None = Field(default=None, description="of synthetic data")
    samples: Count | None = Field(default=None, description="of synthetic data, for training")

    def options(self) -> dict[str, Any]:
        """The options that were given, as `normbench.data.load` takes them."""
        return self.model_dump(exclude={"source"}, exclude_none=True)


class Training(Part):
    """How a cell is trained. Exactly one of `samples` and `epochs` sets the budget."""

    samples: Count | None = Field(default=None, description="training samples seen in total")
    epochs: Positive | None = Field(default=None, description="passes over the training split")
    accumulate: Count = Field(default=1, description="batches per optimizer step")
    optimizer: Optimizer = "sgd"
    lr: Positive = Field(default=0.1, description="learning rate at the reference batch")
    lr_reference_batch: Count = Field(default=128, description="batch that `lr` is meant for")
    lr_scaling: Literal["linear", "sqrt", "none"] = Field(
        default="linear", description="how the rate follows the batch size"
    )
    momentum: Momentum = Field(default=0.9, description="of sgd")
    nesterov: StrictBool = False
    weight_decay: Decay = Field(default=5e-4, description="norm parameters and biases are exempt")
    schedule: Schedule = "cosine"
    warmup_fraction: Fraction = Field(default=0.05, description="share of steps of linear warm-up")
    label_smoothing: Fraction = 0.0
    clip_grad_norm: Positive | None = None
    evaluations: Count = Field(default=4, description="points of the curve, on validation")
    eval_batch_size: Count = 500
    recalibrate: Count | None = Field(
        default=None,
        description="training batches that running statistics are taken anew over (precise BN) "
        "before a second test; adds recalibrated_test_accuracy",
    )
    timeout_seconds: Positive = Field(
        default=600.0, description="wall time after which a cell counts as `timeout`"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Training:
        if (self.samples is None) == (self.epochs is None):
            raise PydanticCustomError("budget", "expected exactly one of 'samples' and 'epochs'")
        if self.nesterov and not (self.momentum > 0 and self.optimizer == "sgd"):
            raise PydanticCustomError("nesterov", "nesterov needs sgd with a momentum above 0")
        return self


class Grid(Part):
    """Values to try. The budget is not among the keys: it is the same for every variant."""

    optimizer: Unique[Optimizer] | None = None
    lr: Unique[Positive] | None = None
    lr_scaling: Unique[Literal["linear", "sqrt", "none"]] | None = None
    momentum: Unique[Momentum] | None = None
    nesterov: Unique[StrictBool] | None = None
    weight_decay: Unique[Decay] | None = None
    schedule: Unique[Schedule] | None = None
    warmup_fraction: Unique[Fraction] | None = None
    label_smoothing: Unique[Fraction] | None = None
    clip_grad_norm: Unique[Positive] | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Grid:
        if not self.model_dump(exclude_none=True):
            raise PydanticCustomError("grid", "expected at least one training key with its values")
        return self


class Tune(Part):
    """Trials inside every cell, judged on the validation split, all of them recorded."""

    grid: Grid
    samples: Count = Field(description="training samples of one trial")
    metric: Literal["validation_accuracy", "validation_loss"] = "validation_accuracy"


class AccuracySuite(Part):
    """What to compare, on what, how it is trained, and which claims it tests."""

    name: Name
    question: Text = Field(description="the question that the suite answers")
    task: Literal["accuracy"] = Field(description="what a cell measures")
    methods: Many[Annotated[MethodEntry, Named("name")]]
    models: Many[Annotated[ModelEntry, Named("name")]]
    datasets: Many[Annotated[DatasetEntry, Named("source")]]
    batch_sizes: Unique[Count] = Field(description="samples in one forward pass")
    seeds: Unique[Seed] = Field(description="equal seeds are paired across methods")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    training: Training
    min_steps: Count = Field(
        default=300, description="fewer steps make large batches look worse than they are"
    )
    tune: Tune | None = None
    exclude: Annotated[tuple[Exclusion, ...], Field(strict=False)] = ()
    claims: Annotated[tuple[Claim, ...], Field(strict=False)] = ()

    def points(self, model: ModelEntry) -> Iterator[Point]:
        """The grid beside methods and seeds."""
        for dataset in self.datasets:
            for batch_size in model.batch_sizes or self.batch_sizes:
                yield Point(
                    dataset.source, dataset.options(), batch_size, self.precision, self.config()
                )

    def config(self) -> Mapping[str, Any]:
        """`Cell.config` of the suite's cells, every key present but `recalibrate`.

        That one is there only where it is asked for: cells that do without keep the ids they had
        before it existed.
        """
        tune = self.tune.model_dump(mode="json", exclude_none=True) if self.tune else None
        training = self.training.model_dump()
        if training["recalibrate"] is None:
            del training["recalibrate"]
        return {**training, "min_steps": self.min_steps, "tune": tune}


Suite = AccuracySuite | CostSuite
"""A suite of any task."""


def json_schema() -> dict[str, Any]:
    """JSON Schema of a suite file, for editors that complete and check while one types."""
    by_task = TypeAdapter(Annotated[Suite, Field(discriminator="task")])
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **by_task.json_schema()}
