"""mypy --strict over everything at its installed name: `make types`.

mypy sees kernels/ and leaderboard/ as normbench.kernels and normbench.leaderboard through a tree
of links in build/; messages name the files as they stand in the repository.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from source_tree import ROOT, make_source_tree

MOVED = re.compile(r"^normbench/(?=kernels/|leaderboard/)|^\.\./\.\./", re.MULTILINE)


def mypy(tree: Path, *what: str) -> int:
    """Run mypy in the tree of links and print what it says with the repository's paths."""
    settings = ROOT / "pyproject.toml"
    command = [sys.executable, "-m", "mypy", "--config-file", str(settings), *what]
    done = subprocess.run(command, cwd=tree, capture_output=True, text=True, check=False)
    print(MOVED.sub("", done.stdout), done.stderr, sep="", end="", flush=True)
    return done.returncode


def main() -> int:
    tree = make_source_tree(ROOT / "build" / "types")
    return mypy(tree, "-p", "normbench") or mypy(tree, "../../scripts")


if __name__ == "__main__":
    sys.exit(main())
