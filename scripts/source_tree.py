"""The package as it is when installed, as a tree of links: nothing needs installing to import it.

`kernels/` and `leaderboard/` stand beside `normbench/` in the repository and inside it once
installed. mypy and GPU machines without pip want the second shape.
"""

from __future__ import annotations

import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def make_source_tree(folder: Path) -> Path:
    """Lay `folder/normbench` anew as links into the repository; `folder` goes on sys.path."""
    package = folder / "normbench"
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    for source in sorted((ROOT / "normbench").iterdir()):
        if source.name != "__pycache__":
            (package / source.name).symlink_to(source)
    for name in ("kernels", "leaderboard"):
        (package / name).symlink_to(ROOT / name)
    return folder
