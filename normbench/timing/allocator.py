"""The allocator in a state that does not depend on what ran before.

glibc gives freed memory back to the system at thresholds that grow with what a process has freed so
far. A small layer whose results lie just above them fetches every page anew in each run, and takes
several times as long for it: in one process, and not in the next.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4
"""Numbers of glibc's options (malloc.h)."""

KEPT = {MMAP_MAX: 0, TRIM_THRESHOLD: -1}
"""Neither maps memory for single blocks nor gives any back."""

USUAL = {MMAP_MAX: 65536, MMAP_THRESHOLD: 2**25, TRIM_THRESHOLD: 2**26}
"""Where glibc's thresholds end once a process has freed blocks of 32 MiB; there is no way to ask
where they were."""


@contextlib.contextmanager
def memory_kept() -> Iterator[None]:
    """Keep freed memory for what comes next; does nothing where the allocator is not glibc's."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        yield
        return
    try:
        for option, value in KEPT.items():
            libc.mallopt(option, value)
        yield
    finally:
        for option, value in USUAL.items():
            libc.mallopt(option, value)
        libc.malloc_trim(0)
