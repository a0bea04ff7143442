"""Ratios are to batch norm, whose code the hash of a method does not hold."""

from __future__ import annotations

from normbench import registry
from normbench.tasks import memory, throughput
from normbench.timing.models import REFERENCE

SINCE = {"protocols": (1, 2), "code": "1197f90057161d4a"}
"""Protocols of throughput and memory, and the reference's code that they were made for."""


def test_other_code_of_the_reference_is_another_protocol() -> None:
    """Or records of both would be divided by different things in one column.

    If this fails, batch norm's code has changed, or code that its module imports: raise `PROTOCOL`
    in both tasks if the change can be felt in time or memory, and write down here what is now.
    """
    protocols = (throughput.PROTOCOL, memory.PROTOCOL)
    assert {"protocols": protocols, "code": registry.get(REFERENCE).code_hash()} == SINCE
