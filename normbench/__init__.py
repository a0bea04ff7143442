"""normbench: the benchmark harness and leaderboard for neural-network normalization methods.

The public API is loaded on first use, so that `import normbench` costs nothing and needs neither
torch nor Polars.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOMES = {
    "build": "normbench.registry",
    "list_methods": "normbench.registry",
    "register": "normbench.registry",
    "swap": "normbench.surgery",
    "fold": "normbench.surgery",
    "norm_layer": "normbench.surgery",
    "recalibrate": "normbench.recalibration",
    "load_suite": "normbench.suites",
    "run": "normbench.engine",
}

if TYPE_CHECKING:
    from normbench.engine import run as run
    from normbench.recalibration import recalibrate as recalibrate
    from normbench.registry import build as build
    from normbench.registry import list_methods as list_methods
    from normbench.registry import register as register
    from normbench.suites import load_suite as load_suite
    from normbench.surgery import fold as fold
    from normbench.surgery import norm_layer as norm_layer
    from normbench.surgery import swap as swap

__all__ = ["__version__", *_HOMES]  # names are strings; the tuple is built above


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'normbench' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
