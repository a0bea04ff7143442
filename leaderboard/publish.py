"""Put a finished folder in the place of an older one, and never in the place of anything else."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARKER = ".normbench-site"


class SiteError(ValueError):
    """A site that cannot be built where, or from what, was asked."""


class NoRecordsError(SiteError):
    """There is nothing to build a site from."""


@contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder to write in; it takes the place of `out` when the block ends without an error.

    Readers of `out` see the whole old site or the whole new one, but for the instant between two
    renames.

    Raises:
        SiteError: if `out` is a file or holds something that is not a site of ours.
    """
    out = out.absolute()
    _check(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        new = work / "new"
        new.mkdir()
        yield new
        (new / MARKER).write_text("Written by `normbench site build`, which may replace it.\n")
        if out.exists():
            out.rename(work / "old")
        new.rename(out)
    finally:
        if (work / "old").exists() and not out.exists():
            (work / "old").rename(out)  # the second rename failed: the old site stays
        shutil.rmtree(work, ignore_errors=True)


def _check(out: Path) -> None:
    if not out.exists():
        return
    if not out.is_dir():
        raise SiteError(f"{out} is a file; expected a folder for the site")
    if any(out.iterdir()) and not (out / MARKER).exists():
        raise SiteError(
            f"{out} is not empty and was not written by normbench, so it is left alone; "
            "choose another folder with --out"
        )
