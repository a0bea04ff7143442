"""Runs cells: in this process or in supervised worker processes, and resumes where it stopped.

Follow a record: `plan` decides which cells to run, `run` (driver.py) hands them to worker
processes (pool.py, serve.py), execute.py measures one in the state that numerics.py sets and
describes the machine (environment.py), and the driver stores what comes back. worker.py is the
same without a driver: cells in, records out, for machines that have little more than torch.
"""

from __future__ import annotations

from normbench.engine.driver import RunSummary, run
from normbench.engine.planning import PlanError, RunPlan, plan
from normbench.engine.pool import WorkerError

__all__ = ["PlanError", "RunPlan", "RunSummary", "WorkerError", "plan", "run"]
