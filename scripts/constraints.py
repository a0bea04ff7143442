"""Turn pip's installation report into constraints.txt: `make constraints`.

A constraint only speaks when its package is wanted, so the list needs no markers: what one Python
version or platform asks for and another does not simply stays silent there.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEADER = """\
# Exact versions of everything normbench and its extras install. Made by `make constraints`, which
# resolves pyproject.toml anew; `make` installs with `-c constraints.txt`. Not edited by hand.
# A line speaks only where its package is wanted: CUDA's packages, say, only where torch asks for
# them. Every version has wheels for Python 3.11 to 3.13.
"""


def pins(report: dict[str, object]) -> list[str]:
    """`name==version` of every package in the report but the project itself, sorted."""
    items = report["install"]
    assert isinstance(items, list)
    found = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"]
        for item in items
    }
    found.pop("normbench", None)
    return [f"{name}=={version.partition('+')[0]}" for name, version in sorted(found.items())]


def main() -> None:
    report = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path("constraints.txt").write_text(HEADER + "\n".join(pins(report)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
