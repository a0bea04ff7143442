"""Invented records for tests of pages. No number here was measured."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from normbench.cells import Cell, Record, cell_id, record_id
from normbench.store import Store

BASE_CELL = Cell(
    suite="invented",
    task="accuracy",
    method="batch_norm",
    params={"eps": 1e-5, "momentum": 0.1, "affine": None},
    variant="batch_norm(eps=1e-05)",
    model="nb_resnet10_1x1",
    model_args={},
    dataset="embedded:mnist",
    dataset_args={},
    batch_size=2,
    seed=0,
    precision="fp32",
    config={"samples": 6000, "min_steps": 300, "optimizer": "sgd", "lr": 0.1},
)
ENVIRONMENT: Mapping[str, Any] = {
    "git": {"sha": "0123456789abcdef", "dirty": False},
    "packages": {"torch": "2.15.0", "timm": "1.0.31", "python": "3.11.9"},
    "cpu": "Invented CPU",
    "threads": 1,
}


def record(
    *,
    accuracy: float | None = 0.9,
    status: str = "ok",
    reason: str = "",
    code_hash: str = "c0de",
    data_fingerprint: str = "da7a",
    fallback: str = "",
    protocol: int = 1,
    hardware_class: str = "cpu-invented",
    started_at: str = "2026-01-02T03:04:05Z",
    metrics: Mapping[str, float] | None = None,
    **cell: Any,
) -> Record:
    """A record of `BASE_CELL` with the given fields of the cell replaced."""
    built = replace(BASE_CELL, **cell)
    values = {"min_values_per_channel": float(built.batch_size), "steps": 3000.0}
    if accuracy is not None:
        values["test_accuracy"] = accuracy
    identity = cell_id(built, code_hash, protocol)
    return Record(
        record_id=record_id(identity, hardware_class, {**ENVIRONMENT, "at": started_at}, "tester"),
        cell_id=identity,
        cell=built,
        code_hash=code_hash,
        protocol=protocol,
        status=status,  # type: ignore[arg-type]
        reason=reason,
        metrics={**values, **(metrics or {})},
        curve=(),
        trials=(),
        samples=(),
        slots={"found": 12, "replaced": 12},
        environment=ENVIRONMENT,
        hardware_class=hardware_class,
        submitter="tester",
        started_at=started_at,
        wall_seconds=4.5,
        data_fingerprint=data_fingerprint,
        fallback=fallback,
    )


def store(folder: Path, records: Iterable[Record]) -> Path:
    """A results folder with these records."""
    kept = Store(folder)
    for each in records:
        kept.append(each)
    kept.compact()
    return folder


METHODS: Mapping[str, tuple[str, str, Mapping[str, Any]]] = {
    "batch_norm(eps=1e-05)": ("batch_norm", "batch", {"eps": 1e-5, "momentum": 0.1}),
    "batch_norm(eps=0.001)": ("batch_norm", "batch", {"eps": 1e-3, "momentum": 0.1}),
    "batch_renorm(schedule=fraction)": ("batch_renorm", "batch", {"schedule": "fraction"}),
    "group_norm": ("group_norm", "group", {"groups": 32}),
    "layer_norm_chw": ("layer_norm_chw", "layer", {}),
    "proxy_norm": ("proxy_norm", "proxy", {"groups": 1}),
}
COLLAPSE = {"batch_norm(eps=1e-05)": 0.34, "batch_norm(eps=0.001)": 0.78}
TOP = {
    "batch_norm(eps=1e-05)": 0.955,
    "batch_norm(eps=0.001)": 0.953,
    "batch_renorm(schedule=fraction)": 0.951,
    "group_norm": 0.948,
    "layer_norm_chw": 0.942,
    "proxy_norm": 0.957,
}


def study(suite: str = "invented") -> list[Record]:
    """A whole invented suite: two nets, six variants, three seeds, one failure of each kind."""
    made = []
    for model, last, batches in (
        ("nb_resnet10_1x1", 1, (2, 4, 8, 16, 32, 64, 128)),
        ("nb_resnet10_4x4", 16, (2, 8, 32)),
    ):
        for number, (name, (method, _, params)) in enumerate(METHODS.items()):
            for batch in batches:
                for seed in range(3):
                    wobble = ((seed * 7 + number * 3 + batch) % 5 - 2) / 100
                    accuracy = TOP[name] + wobble * (0.6 if batch > 2 else 1.2) / 2
                    if batch == 2 and last == 1 and name in COLLAPSE:
                        accuracy = COLLAPSE[name] + 2 * wobble
                    accuracy -= 0.004 * max(0, batch - 32) / 32 * (method == "group_norm")
                    lost = name == "batch_renorm(schedule=fraction)" and batch == 4 and seed == 1
                    made.append(
                        record(
                            suite=suite, method=method, variant=name, params=params, model=model,
                            batch_size=batch, seed=seed,
                            accuracy=None if lost else accuracy,
                            status="diverged" if lost else "ok",
                            reason="loss was not finite at step 12" if lost else "",
                            started_at=f"2026-01-02T03:{number:02d}:{seed:02d}Z",
                            metrics={"min_values_per_channel": batch * last},
                        )
                    )  # fmt: skip
        made += [
            record(
                suite=suite, method="instance_norm", variant="instance_norm", params={},
                model=model, batch_size=2, seed=seed, accuracy=None, status="unsupported",
                reason="instance_norm needs more than 1 value per channel in training",
                metrics={"min_values_per_channel": 2 * last},
            )
            for seed in range(3)
            if last == 1
        ]  # fmt: skip
    return made


Entries = Mapping[str, tuple[float | None, str]]


def examination(entries: Entries, *, fast: bool = False, day: int = 1, **fields: Any) -> Record:
    """A record of task `capability` with these values and reasons, by name of the entry."""
    answers = {name: {"value": value, "reason": why} for name, (value, why) in entries.items()}
    method = fields.pop("method", "group_norm")
    made = record(
        suite="capabilities", task="capability", method=method, variant=method,
        config={"fast": fast}, started_at=f"2026-01-{day:02}T00:00:00Z", **fields,
    )  # fmt: skip
    return replace(made, slots={"probes": answers})


def examinations() -> list[Record]:
    """What methods of the invented suite can do."""
    batch = {"batch_independent": (False, "<x_i> & x_j"), "saved_bytes": (8.0, "")}
    owner = {
        "batch_independent": (True, ""), "batch_independent_without_activation": (False, "alone"),
        "saved_bytes": (12.5, ""), "saved_bytes_without_activation": (4.0, ""),
    }  # fmt: skip
    crashed = {"batch_independent": (None, "crashed: ValueError: no"), "saved_bytes": (4.0, "")}
    cost = {"saved_bytes": (8.0, "")}
    return [
        examination(batch, method="batch_norm", code_hash="01d"),
        examination({"batch_independent": (True, ""), "saved_bytes": (10.0, "")}, day=2),
        examination(owner, method="proxy_norm"),
        examination(crashed, method="batch_renorm"),
        examination(cost, method="batch_norm", code_hash="01d", hardware_class="gpu-invented"),
    ]


def catalogue_json() -> dict[str, Any]:
    """A catalogue of the methods above (batch_renorm is left out: a plugin, say)."""
    methods = {name: family for name, family, _ in METHODS.values() if name != "batch_renorm"}
    return {
        "schema": 2,
        "probes": [
            {
                "name": name,
                "theme": "Batch",
                "heading": name.replace("_", " "),
                "unit": unit,
                "description": f"Asks for {name}.",
            }
            for name, unit in (("batch_independent", ""), ("saved_bytes", "bytes/element"))
        ],
        "methods": [_entry(name, family) for name, family in methods.items()],
    }


def _entry(name: str, family: str) -> dict[str, Any]:
    return {
        "name": name,
        "title": name.replace("_", " ").title(),
        "summary": f"An invented summary of {name} with a < and an &.",
        "family": family,
        "equation": r"y = \gamma \frac{x - \mu}{\sqrt{\sigma^2 + \epsilon}} + \beta",
        "consumes_activation": name == "proxy_norm",
        "weight_side": False,
        "policy": "Refuses what it cannot do.",
        "citation": {
            "title": "Invented <Paper>",
            "authors": ["A. Author", "B. Author"],
            "year": 2020,
            "venue": "Venue",
            "arxiv": "1502.03167",
            "bibtex": "@inproceedings{key,\n  title = {{Invented}}\n}",
        },
        "parameters": [
            {
                "name": "eps",
                "default": None,
                "kind": "float",
                "bounds": "> 0",
                "choices": [],
                "doc": "added to the variance",
            }
        ],
        "code_hash": "c0de",
    }
