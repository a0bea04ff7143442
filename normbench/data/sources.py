"""The sources there are: from a string to a place, with the nearest valid name for a wrong one."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from normbench.data import hub, imagefolder, parquet, synthetic
from normbench.data.contents import Located
from normbench.data.errors import DataError
from normbench.data.options import Options

SCHEMES = {
    "embedded": "embedded:NAME",
    "hf": "hf:OWNER/NAME",
    "parquet": "parquet:PATH",
    "imagefolder": "imagefolder:PATH",
    "synthetic": "synthetic:CxHxW",
}


def list_embedded() -> list[str]:
    """Sources that need nothing but the package: `embedded:mnist` and so on."""
    return [f"embedded:{name}" for name in parquet.EMBEDDED_NAMES]


def is_local(source: str) -> bool:
    """Whether a source is a path of the user's, whose files can change under the same name."""
    scheme, _, rest = source.partition(":")
    return scheme in ("parquet", "imagefolder") or (scheme == "hf" and hub.is_local(rest))


def split_source(source: str) -> tuple[str, str]:
    """`embedded:mnist` to `("embedded", "mnist")`.

    Raises:
        DataError: for an unknown scheme, or nothing after it.
    """
    scheme, colon, rest = source.partition(":")
    if scheme in SCHEMES and rest:
        if scheme == "embedded" and rest not in parquet.EMBEDDED_NAMES:
            raise DataError(f"unknown data source {source!r}; {_hint(source, rest)}")
        return scheme, rest
    if scheme in SCHEMES:
        raise DataError(f"data source {source!r} is incomplete; expected {SCHEMES[scheme]}")
    raise DataError(f"unknown data source {source!r}; {_hint(source, rest if colon else scheme)}")


def _hint(source: str, rest: str) -> str:
    """The nearest embedded set or scheme, else all of them."""
    if close := difflib.get_close_matches(source, list_embedded(), n=1, cutoff=0.7):
        return f"did you mean {close[0]!r}?"
    if close := difflib.get_close_matches(rest, parquet.EMBEDDED_NAMES, n=1, cutoff=0.7):
        return f"did you mean 'embedded:{close[0]}'?"
    scheme, colon, _ = source.partition(":")
    close = difflib.get_close_matches(scheme, SCHEMES, n=1)
    if colon and close and close[0] != scheme:
        return f"did you mean {close[0] + ':' + rest!r}?"
    return f"valid: {', '.join([*list_embedded(), *list(SCHEMES.values())[1:]])}"


def check_source(source: str, options: Mapping[str, Any] | None = None) -> None:
    """Check a source without reading any data: its form, its options, and that a path exists.

    Raises:
        DataError: in one sentence, with the nearest valid name.
    """
    scheme, rest = split_source(source)
    Options.parse(source, scheme, options or {})
    if scheme == "hf":
        hub.check_name(rest)
    elif scheme == "parquet":
        parquet.find_files(rest)
    elif scheme == "imagefolder":
        imagefolder.find_folder(rest)
    elif scheme == "synthetic":
        synthetic.parse_shape(rest)


def locate(scheme: str, rest: str, options: Options) -> Located:
    """Find a source that holds encoded images.

    Raises:
        DataError: if it is not there.
    """
    if scheme == "embedded":
        return parquet.embedded(rest)
    if scheme == "parquet":
        return parquet.locate(rest, options)
    if scheme == "imagefolder":
        return imagefolder.locate(rest)
    return hub.locate(rest, options)
