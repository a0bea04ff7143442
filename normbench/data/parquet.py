"""`parquet:PATH` and the embedded sets: Parquet files whose rows hold encoded images.

A file, a folder or a glob. Splits come from a column `split`, else from the files' names (or
those of their folders), as the Hub names them: `train-00000-of-00001.parquet`, `val.parquet`,
`mnist-test.parquet`. Images are a column of bytes or a struct {bytes, path}. The encoded images
are held in memory; for sets beyond it, `hf:./FOLDER` maps them from disk.
"""

from __future__ import annotations

import glob
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from normbench.data.contents import (
    SPLIT_WORDS,
    Contents,
    Located,
    Samples,
    choose_columns,
    class_numbers,
)
from normbench.data.errors import DataError
from normbench.data.options import Options
from normbench.registry import nearest

if TYPE_CHECKING:
    import pyarrow as pa

EMBEDDED = Path(__file__).parent / "embedded"
EMBEDDED_NAMES = ("digits", "fashion-mnist", "mnist")


@dataclass(frozen=True)
class ColumnImages:
    """Images that are rows of an Arrow column of bytes; rows without bytes are refused."""

    source: str
    column: pa.ChunkedArray
    rows: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.column) if self.rows is None else len(self.rows)

    def __getitem__(self, index: int, /) -> bytes:
        row = index if self.rows is None else int(self.rows[index])
        data = self.column[row].as_py()
        if data is None:
            raise DataError(f"{self.source}: row {row} has no image bytes")
        return bytes(data)


def embedded(name: str) -> Located:
    """One of the sets inside the package.

    Raises:
        DataError: for a name there is not.
    """
    if name not in EMBEDDED_NAMES:
        raise DataError(f"no embedded data set {name!r}; {nearest(name, EMBEDDED_NAMES)}")
    files = [EMBEDDED / f"{name}-{split}.parquet" for split in ("train", "validation", "test")]
    identity = ",".join(_footer_hash(file) for file in files)  # footers hold a content checksum
    source = f"embedded:{name}"
    return Located(identity, lambda: _read(source, files, Options()))


def find_files(path: str) -> list[Path]:
    """The Parquet files that PATH means, sorted.

    Raises:
        DataError: if there is none.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        files = sorted(p for p in place.rglob("*.parquet") if p.is_file())
    elif place.is_file():
        files = [place]
    else:
        files = sorted(Path(p) for p in glob.glob(str(place), recursive=True) if Path(p).is_file())
    if not files:
        raise DataError(f"parquet:{path}: no Parquet file at {place.absolute()}")
    return files


def locate(path: str, options: Options) -> Located:
    """Find the files of `parquet:PATH`."""
    files = find_files(path)
    stats = [(str(f.absolute()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    return Located(json.dumps(stats), lambda: _read(f"parquet:{path}", files, options))


def _footer_hash(file: Path) -> str:
    """Hash of a Parquet file's footer, which costs no import of pyarrow and no read of the data."""
    try:
        with file.open("rb") as stream:
            stream.seek(-8, 2)
            size = int.from_bytes(stream.read(4), "little")
            stream.seek(-8 - size, 2)
            return hashlib.sha256(stream.read(size)).hexdigest()[:16]
    except OSError as error:
        raise DataError(f"embedded file {file.name} cannot be read: {error}") from error


def _read(source: str, files: Sequence[Path], options: Options) -> Contents:
    tables = _tables(source, files)
    schema = next(iter(tables.values())).schema
    features = _features(schema)
    kinds = {field.name: _kind(field.type, features.get(field.name)) for field in schema}
    image, label = choose_columns(source, kinds, options)
    for split, table in tables.items():
        if missing := {image, label} - set(table.column_names):
            raise DataError(
                f"{source}: split {split!r} has no column {missing.pop()!r}; "
                f"its columns are {', '.join(table.column_names)}"
            )
    names = tuple(features.get(label, {}).get("names", ()))
    columns = {s: np.asarray(t.column(label).to_numpy()) for s, t in tables.items()}
    numbers, names = class_numbers(source, columns, names)
    images = {s: ColumnImages(source, _bytes_of(source, tables[s], image)) for s in numbers}
    return Contents({s: Samples(images[s], numbers[s]) for s in numbers}, names)


def _tables(source: str, files: Sequence[Path]) -> dict[str, pa.Table]:
    """One table per split: by a column `split`, else by the files' names, else all `train`."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    parts: dict[str, list[pa.Table]] = {}
    for file in files:
        try:
            table = pq.ParquetFile(file).read()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise DataError(f"{source}: {file} cannot be read as Parquet: {reason}") from error
        parts.setdefault(_split_of(file, files), []).append(table)
    try:
        tables = {split: pa.concat_tables(tables) for split, tables in parts.items()}
    except pa.ArrowInvalid as error:
        raise DataError(f"{source}: its files have different columns") from error
    if len(tables) == 1 and "split" in next(iter(tables.values())).column_names:
        (table,) = tables.values()
        values = table.column("split").unique().to_pylist()
        return {str(v): table.filter(pc.field("split") == v) for v in sorted(values)}
    return tables


def _split_of(file: Path, files: Sequence[Path]) -> str:
    """The role that a file's name, or else its folder's, tells; `train` for a lone file."""
    if len(files) > 1:
        for word in (*re.split(r"[^a-z]+", file.stem.lower())[::-1], file.parent.name.lower()):
            if word in SPLIT_WORDS:
                return SPLIT_WORDS[word]
    return "train"


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    """Column types as `datasets` writes them into the metadata, if it did."""
    metadata = schema.metadata or {}
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _kind(kind: pa.DataType, feature: Mapping[str, Any] | None) -> str:
    import pyarrow as pa

    declared = (feature or {}).get("_type")
    if declared in ("Image", "ClassLabel"):
        return "image" if declared == "Image" else "class"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "image"
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return "image"
    if pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "value"
    return "other"


def _bytes_of(source: str, table: pa.Table, name: str) -> pa.ChunkedArray:
    """The column of encoded images: the column itself, or the field `bytes` of its structs."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(name)
    if pa.types.is_struct(column.type) and column.type.get_field_index("bytes") >= 0:
        return pc.struct_field(column, "bytes")
    if pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type):
        return column
    raise DataError(
        f"{source}: column {name!r} is {column.type}; expected bytes or {{bytes, path}}"
    )
