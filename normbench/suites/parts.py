"""What suites of every task are made of: types with their bounds, methods, models, exclusions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    JsonValue,
    StrictInt,
    StrictStr,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

T = TypeVar("T")

Text = Annotated[StrictStr, Field(min_length=1)]
Name = Annotated[
    StrictStr, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="lower case, digits, . _ -")
]
Count = Annotated[StrictInt, Field(ge=1)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Share = Annotated[Number, Field(gt=0, lt=1)]
Positive = Annotated[Number, Field(gt=0)]
Whole = Annotated[StrictInt, Field(ge=0)]
Seed = Annotated[StrictInt, Field(ge=0, le=2**32 - 1)]


def _unique(values: tuple[T, ...]) -> tuple[T, ...]:
    for index, value in enumerate(values):
        if value in values[:index]:
            raise PydanticCustomError("unique", "{value} stands there twice", {"value": value})
    return values


@dataclass(frozen=True, slots=True)
class Named:
    """A bare string stands for a mapping with one key: `resnet18` for `{name: resnet18}`."""

    key: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def expand(value: Any) -> Any:
            return {self.key: value} if isinstance(value, str) else value

        return core_schema.no_info_before_validator_function(expand, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(schema)]}


class _OneOrMany:
    """A bare value stands for a list of one."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def expand(value: Any) -> Any:
            return value if isinstance(value, list) else [value]

        return core_schema.no_info_before_validator_function(expand, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        many = handler(schema)
        return {"anyOf": [many["items"], many]}


Many = Annotated[tuple[T, ...], Field(strict=False, min_length=1)]
Unique = Annotated[Many[T], AfterValidator(_unique)]
OneOrMany = Annotated[Many[T], _OneOrMany()]


class Part(BaseModel):
    """A mapping of a suite file: strict types, no unknown keys, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class MethodEntry(Part):
    """A method with parameters; the string `name(key=value)` means the same."""

    name: Text = Field(description="method of the catalogue (normbench methods)")
    params: dict[str, JsonValue] = Field(default_factory=dict, description="its parameters")


class ModelEntry(Part):
    """A timm model; a bare string is its name."""

    name: Text = Field(description="timm model, or a network that normbench registers")
    args: dict[str, JsonValue] = Field(
        default_factory=dict, description="keyword arguments of timm.create_model"
    )
    batch_sizes: Unique[Count] | None = Field(
        default=None, description="instead of the suite's, for this model"
    )


class Claim(Part):
    """A sentence from a paper, and the check that records can support or contradict."""

    id: Name
    text: Text
    source: Text = Field(description="where it is claimed: arXiv id, table, page")
    check: dict[str, JsonValue] = Field(description="evaluated on the records")


class Exclusion(Part):
    """Leaves out the cells that match every key given here; a list matches any of its values."""

    method: OneOrMany[Text] | None = Field(
        default=None, description="a name (all its variants) or name(key=value)"
    )
    model: OneOrMany[Text] | None = None
    dataset: OneOrMany[Text] | None = Field(default=None, description="the source")
    batch_size: OneOrMany[Count] | None = None
    seed: OneOrMany[Seed] | None = None

    @model_validator(mode="after")
    def _not_empty(self) -> Exclusion:
        if not self.model_dump(exclude_none=True):
            raise PydanticCustomError("exclusion", "an empty entry would leave out every cell")
        return self


class Point(NamedTuple):
    """What a cell is beside its method, model and seed. The fields are those of `Cell`."""

    dataset: str
    dataset_args: dict[str, Any]
    batch_size: int
    precision: str
    config: Mapping[str, Any]
