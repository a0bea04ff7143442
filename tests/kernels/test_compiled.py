"""Every fused kernel, compiled for GPUs that are not here, keeps to its budget (budget.json).

The kernels are those that the launchers launch (scripts/kernel_cases.py). `make kernels-report`
prints what they take.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is not installed here")

from kernel_budget import BUDGET, REFRESH, complaints, plan, programs, read, version, write
from kernel_cases import DTYPES, Entry, entries
from kernel_compile import (
    MAIN_TARGET,
    TARGETS,
    Compiled,
    disassembled,
    machine_code,
    measure,
    ptx_accesses,
    ptx_order,
)

from normbench.kernels.fused.dispatch import interpreted
from normbench.kernels.fused.launch import MULTIPROCESSORS, alignment

if interpreted():
    pytest.skip("TRITON_INTERPRET=1: interpreted kernels are not compiled", allow_module_level=True)

TRITON, KERNELS = read()
CUDA = [target for target in TARGETS if target.startswith("sm_")]
TOGETHER = [name for name, (_, entry) in plan().items() if entry.launch.cooperative]
PROGRAMS, REGISTERS = 2, 1 << 16
"""Of a multiprocessor: programs that the cooperative launches here count on, and registers."""
LOADED = "32x256x56x56 last bf16 | streaming.backward_stats | add+relu"
"""Loads of three kinds: asynchronous copies, plain ones and bytes of the mask."""


def test_the_budget_has_exactly_the_kernels_that_are_launched() -> None:
    missing, stale = sorted(set(plan()) - set(KERNELS)), sorted(set(KERNELS) - set(plan()))
    assert not missing, f"without a budget, `{REFRESH}` adds them: {missing}"
    assert not stale, f"no longer launched, `{REFRESH}` removes them: {stale}"


def test_the_budget_is_of_the_triton_that_is_here() -> None:
    """Another version compiles otherwise: then only spills and widths are compared."""
    if version() != TRITON:
        pytest.skip(f"registers and shared memory are Triton {TRITON}'s; here is {version()}")


@pytest.mark.parametrize("name", plan())
def test_a_kernel_keeps_to_its_budget(name: str) -> None:
    target, entry = plan()[name]
    if name not in KERNELS:
        pytest.skip("it has none; another test says so")
    now = measure(entry.launch, target)
    worse = complaints(
        now, KERNELS[name], target, entry.launch.warps, same_version=version() == TRITON
    )
    assert not worse, f"{name} {'; '.join(worse)}. If that is meant: {REFRESH}"
    narrow = {n: bits for n, bits in now.widths.items() if bits < allowed(n, target, entry)}
    assert not narrow, f"{name} accesses {narrow}, alignment allows more"


def allowed(tensor: str, target: str, entry: Entry) -> int:
    """Bits of the widest access that the shape's alignment and a thread's share of a tile allow."""
    launch, (_, channels, *positions) = entry.launch, entry.shape.sizes
    if tensor == "bits" or "K" not in launch.constants:  # bytes; rows of a few splits
        return 8
    run = alignment(channels if entry.shape.last else positions[0] * positions[1])
    tile = launch.constants["R"] * launch.constants["K"]
    share = tile // (launch.warps * TARGETS[target].warp_size)
    return min(128, min(run, share) * 8 * DTYPES[entry.shape.dtype].itemsize)


@pytest.mark.parametrize("target", CUDA)
def test_the_widths_are_those_of_the_machine_code(target: str) -> None:
    """They are read from PTX, which tells where an access stands; disassembling takes longer."""
    asm = machine_code(entries()[LOADED].launch, target).asm
    code = disassembled(asm["cubin"])
    assert not re.search(r"\b(LDL|STL)\b", code)
    found = re.findall(r"\b(?:LDG|STG|LDGSTS)\.E((?:\.\w+)*)", code)
    assert {_bits(options) for options in found} == {bits for _, bits in ptx_accesses(asm["ptx"])}


def _bits(options: str) -> int:
    """Of a machine instruction: .BYPASS.128 is 128, .U8 is 8, none is 32."""
    return int(number[1]) if (number := re.search(r"\.[US]?(8|16|64|128)\b", options)) else 32


@pytest.mark.parametrize("target", CUDA)
def test_a_kernel_that_spills_is_found(target: str) -> None:
    launch = entries()[LOADED].launch
    starved = measure(launch, target, maxnreg=32)
    assert starved.spills > 0
    assert "spills" in complaints(starved, measure(launch, target), target, 4)[0]
    assert re.search(r"\b(LDL|STL)\b", disassembled(_cubin(target, maxnreg=32)))


def _cubin(target: str, **options: int) -> bytes:
    cubin = machine_code(entries()[LOADED].launch, target, **options).asm["cubin"]
    assert isinstance(cubin, bytes)
    return cubin


def test_no_integer_makes_a_kernel_be_compiled_anew() -> None:
    """A batch size met for the first time must not cost a second of compiling."""
    for name, entry in entries().items():
        integers = {n for n, v in entry.launch.arguments.items() if type(v) is int}
        fixed = {p.name for p in entry.launch.kernel.params if p.do_not_specialize}
        assert integers <= fixed, name


def test_the_cooperative_way_is_compiled_where_it_runs() -> None:
    """In both layouts with all forms; not for AMD's GPUs, where it is not taken."""
    found = [(target, entry) for target, entry in plan().values() if entry.launch.cooperative]
    assert len({(e.shape.last, e.form, e.launch.kernel.__name__) for _, e in found}) == 2 * 4 * 2
    assert {target for target, _ in found} == set(CUDA)
    forms = {entry.form for _, entry in found}
    assert not [n for n, e in entries().items() if e.form in forms and not e.launch.cooperative]


@pytest.mark.parametrize("name", TOGETHER)
def test_programs_that_wait_for_each_other_are_all_on_the_device(name: str) -> None:
    """As many as the cut counts on, by the budget's registers and shared memory."""
    target, entry = plan()[name]
    if name not in KERNELS:
        pytest.skip("it has no budget; another test says so")
    threads, taken = 32 * entry.launch.warps, KERNELS[name]
    assert math.prod(entry.launch.grid) <= PROGRAMS * MULTIPROCESSORS["meta"]
    assert PROGRAMS * threads * -(-taken.registers // 8) * 8 <= REGISTERS
    assert programs(target, taken.shared, entry.launch.warps) >= PROGRAMS


@pytest.mark.parametrize("name", TOGETHER)
def test_what_others_store_is_loaded_behind_the_wait(name: str) -> None:
    """In the order of the PTX, in which loops go back and nothing else does."""
    target, entry = plan()[name]
    order = list(ptx_order(machine_code(entry.launch, target).asm["ptx"]))
    marks = [what for what, _ in order if what in ("release", "acquire")]
    assert marks == ["release", "acquire", "release", "acquire"]
    tiles, none, merging, none_again, tiles_again = _between(order)
    assert not none | none_again
    backward = "backward" in entry.launch.kernel.__name__
    written = {("st", "d_residual")} & tiles
    assert {one for one in tiles if one[0] == "st"} == {("st", "staging")} | written
    merged = "means" if backward else "saved"
    assert ("st", merged) in merging
    assert {one for one in tiles_again if one[0] == "st"} <= {
        ("st", n) for n in ("y", "bits", "dx")
    }
    loads = {name for what, name in tiles if what == "ld"}
    # Values per channel may have no name; a program's own tiles have.
    assert not loads & {"staging", "means"}
    if not backward:
        assert loads == {"x"}
    if not entry.shape.last:  # one channel: all have names
        assert ("ld", "staging") in merging
        assert ("ld", merged) in tiles_again


def _between(order: list[tuple[str, str]]) -> list[set[tuple[str, str]]]:
    """What comes before, between and behind the accesses that order the others."""
    parts: list[set[tuple[str, str]]] = [set()]
    for one in order:
        if one[0] in ("release", "acquire"):
            parts.append(set())
        else:
            parts[-1].add(one)
    return parts


WAS = Compiled(registers=60, spills=0, shared=30_000, widths={"x": 128, "y": 64})


@pytest.mark.parametrize(
    ("now", "says"),
    [
        (replace(WAS, spills=8), "spills 8"),
        (replace(WAS, registers=69), "takes 69 registers, not 60"),
        (replace(WAS, widths={"x": 64, "y": 64}), "accesses x by 64 bits, not 128"),
        (replace(WAS, widths={"x": 128}), "accesses y by 0 bits, not 64"),
        (replace(WAS, shared=40_000), "takes 40000 bytes of shared memory, not 30000"),
    ],
)
def test_what_is_worse_is_said(now: Compiled, says: str) -> None:
    assert [says in one for one in complaints(now, WAS, MAIN_TARGET, 4)] == [True]


@pytest.mark.parametrize(
    "now",
    [
        WAS,
        replace(WAS, registers=68),
        replace(WAS, registers=30, shared=0),
        replace(WAS, shared=31_000),  # seven programs as before
        replace(WAS, widths={"x": 128, "y": 128}),
    ],
)
def test_what_is_no_worse_passes(now: Compiled) -> None:
    assert complaints(now, WAS, MAIN_TARGET, 4) == []


def test_another_triton_is_held_to_spills_and_widths_only() -> None:
    now = replace(WAS, registers=200, shared=90_000)
    assert complaints(now, WAS, MAIN_TARGET, 4, same_version=False) == []
    assert complaints(replace(now, spills=8), WAS, MAIN_TARGET, 4, same_version=False) == []
    assert complaints(replace(now, spills=12), WAS, MAIN_TARGET, 4, same_version=False)
    assert complaints(replace(now, spills=3), WAS, "gfx942", 4, same_version=False)


def test_a_written_budget_reads_as_it_was(tmp_path: Path) -> None:
    write(KERNELS, tmp_path / "budget.json")
    assert read(tmp_path / "budget.json") == (version(), KERNELS)
    if version() == TRITON:
        assert (tmp_path / "budget.json").read_bytes() == BUDGET.read_bytes()
