"""What can be asked of a data source, and the errors for what cannot."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from normbench.data.errors import DataError
from normbench.registry import nearest

COLUMNS = frozenset({"parquet", "hf"})
SPLITTING = frozenset({"parquet", "hf", "imagefolder"})
HUB = frozenset({"hf"})
SYNTHETIC = frozenset({"synthetic"})
ANY = COLUMNS | SPLITTING | SYNTHETIC | {"embedded"}


def _option(default: Any, kind: type, schemes: frozenset[str] = ANY, low: float = 0.0) -> Any:
    return field(default=default, metadata={"kind": kind, "schemes": schemes, "low": low})


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a source, checked.

    Attributes:
        train_samples: use only so many training samples, a stratified subset by `split_seed`.
        image_size: side in pixels; the shorter side is resized to it, the centre cut out.
        channels: 1 or 3; None takes what the first image has.
        split_seed: decides every split and subset that the source does not give.
        streaming: True reads images while training, False holds them in memory, None decides by
            `memory_limit_mb`.
        memory_limit_mb: decoded size (uint8) up to which a set is held in memory.
        augment: timm's training augmentation (random crop, flip, colour); streams.
        workers: loader processes of a streamed set.
        image_column: column of the images; None finds it by type.
        label_column: column of the labels; None finds it by type.
        train_split: name of the training split; None finds it.
        validation_split: name of the validation split; None finds it, else carves it.
        test_split: name of the test split; None finds it.
        validation_fraction: share of the training split to carve where there is no validation.
        test_fraction: share to carve where there is one single split.
        config: configuration of the Hub data set.
        revision: revision of the Hub data set.
        num_classes: of synthetic data.
        samples: training samples of synthetic data; validation and test get a quarter each.
    """

    train_samples: int | None = _option(None, int, low=1)
    image_size: int | None = _option(None, int, low=1)
    channels: int | None = _option(None, int, ANY - SYNTHETIC, low=1)
    split_seed: int = _option(0, int)
    streaming: bool | None = _option(None, bool, ANY - SYNTHETIC)
    memory_limit_mb: float = _option(1024.0, float, ANY - SYNTHETIC)
    augment: bool = _option(False, bool, ANY - SYNTHETIC)
    workers: int = _option(0, int, ANY - SYNTHETIC)
    image_column: str | None = _option(None, str, COLUMNS)
    label_column: str | None = _option(None, str, COLUMNS)
    train_split: str | None = _option(None, str, SPLITTING)
    validation_split: str | None = _option(None, str, SPLITTING)
    test_split: str | None = _option(None, str, SPLITTING)
    validation_fraction: float = _option(0.1, float, SPLITTING)
    test_fraction: float = _option(0.2, float, SPLITTING)
    config: str | None = _option(None, str, HUB)
    revision: str | None = _option(None, str, HUB)
    num_classes: int = _option(10, int, SYNTHETIC, low=2)
    samples: int = _option(1000, int, SYNTHETIC, low=1)

    @classmethod
    def parse(cls, source: str, scheme: str, given: Mapping[str, Any]) -> Options:
        """Check the options of a source; None stands for the default.

        Raises:
            DataError: for an option that does not exist or that this kind of source has no use
                for, and for a value of the wrong type or out of bounds.
        """
        known = {f.name: f for f in dataclasses.fields(cls)}
        valid = [name for name, f in known.items() if scheme in f.metadata["schemes"]]
        values = {}
        for name, value in given.items():
            if name not in known:
                raise DataError(f"{source} has no option {name!r}; {nearest(name, valid)}")
            if name not in valid:
                raise DataError(f"{source} has no option {name!r}; valid: {', '.join(valid)}")
            if value is not None:
                values[name] = _checked(f"{source}: option {name}", value, known[name].metadata)
        options = cls(**values)
        options._check_together(source)
        return options

    def _check_together(self, source: str) -> None:
        for name in ("validation_fraction", "test_fraction"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise DataError(
                    f"{source}: option {name} is {getattr(self, name):g}; expected between 0 and 1"
                )
        if self.channels not in (None, 1, 3):
            raise DataError(f"{source}: option channels is {self.channels}; expected 1 or 3")
        if self.augment and self.streaming is False:
            raise DataError(f"{source}: augment needs streaming, which is switched off")


def _checked(label: str, value: Any, metadata: Mapping[str, Any]) -> Any:
    kind: type = metadata["kind"]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is int and number and float(value).is_integer():
        value = int(value)
    elif kind is float and number:
        value = float(value)
    elif kind in (int, float) or not isinstance(value, kind):
        raise DataError(f"{label} is {value!r}; expected {kind.__name__}")
    if kind in (int, float) and not value >= metadata["low"]:
        raise DataError(f"{label} is {value:g}; expected at least {metadata['low']:g}")
    return value
