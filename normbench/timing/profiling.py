"""Torch's profiler, quiet, and detached once it has done its work.

Both settings are read by the profiler's library when it is first used.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch.profiler import profile

# It tells on stderr that it starts, stops, and finds no GPU.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
# Attached to CUDA it would go on to slow every launch down, of later cells too.
os.environ.setdefault("TEARDOWN_CUPTI", "1")


def raw_events(profiler: profile) -> Sequence[Any]:
    """Events as they were recorded; torch's own lists of them take seconds to build."""
    results = profiler.profiler
    assert results is not None
    assert results.kineto_results is not None
    events: Sequence[Any] = results.kineto_results.events()
    return events
