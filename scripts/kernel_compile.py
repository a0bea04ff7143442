"""Compile a recorded launch for a device that is not here, and read what became of it.

Triton's own just-in-time path compiles, with a stand-in for the driver: what it makes of alignment,
of None and of integers is what it will make of them on the device.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from normbench.kernels.fused.launch import Launch

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
MAIN_TARGET = "sm_90"

BINARIES = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a kernel needs of the device.

    Attributes:
        registers: 32-bit registers of a thread; on gfx942 the vector registers.
        spills: bytes of local memory of a thread; on gfx942 registers spilled or bytes of scratch.
        shared: bytes of shared memory of a program.
        widths: bits of the narrowest load or store of each large tensor, by the argument's name.
    """

    registers: int
    spills: int
    shared: int
    widths: dict[str, int]


@dataclass(frozen=True, slots=True)
class _Driver:
    """As much of a driver as compiling needs."""

    name: str

    def get_current_target(self) -> Any:
        return TARGETS[self.name]

    def get_current_device(self) -> str:
        return self.name  # the key of the compiled kernels: not that of a device which is there

    def get_current_stream(self, device: str) -> int:
        return 0


@contextmanager
def _compiling_for(target: str) -> Iterator[None]:
    before = driver._active
    driver.set_active(_Driver(target))
    try:
        yield
    finally:
        driver.set_active(before)


def machine_code(launch: Launch, target: str, **options: Any) -> Any:
    """Triton's compiled kernel: its `asm` holds every stage, its `metadata` shared memory."""
    with _compiling_for(target):
        return launch.kernel.warmup(
            grid=launch.grid, **launch.arguments, **launch.constants, **launch.options(), **options,
        )  # fmt: skip


def measure(launch: Launch, target: str, **options: Any) -> Compiled:
    """Compile a launch for a name of `TARGETS` and read registers, spills and widths.

    Args:
        launch: a recorded launch; its tensors may be on the meta device.
        target: a name of `TARGETS`.
        options: of the compiler, beside those of the launch.
    """
    compiled = machine_code(launch, target, **options)
    if target.startswith("sm_"):
        registers, spills = _resources(compiled.asm["cubin"])
        accesses = ptx_accesses(compiled.asm["ptx"])
    else:
        registers, spills = _metadata(compiled.asm["amdgcn"])
        accesses = _amd_accesses(compiled.asm["amdgcn"])
    widths = _narrowest(accesses, large_tensors(launch))
    return Compiled(registers, spills, compiled.metadata.shared, widths)


def _narrowest(accesses: Iterator[tuple[str, int]], tensors: set[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, bits in accesses:
        if name in tensors:
            found[name] = min(bits, found.get(name, bits))
    if missing := tensors - set(found):
        raise ValueError(f"no load or store of {', '.join(sorted(missing))} was found")
    return dict(sorted(found.items()))


def large_tensors(launch: Launch) -> set[str]:
    """Arguments that decide how much is moved: the largest with three dimensions, and bit masks."""
    tensors = {n: a for n, a in launch.arguments.items() if isinstance(a, torch.Tensor)}
    sizes = {n: a.numel() for n, a in tensors.items() if a.ndim >= 3}
    large = {n for n, size in sizes.items() if size == max(sizes.values())}
    return large | {n for n, a in tensors.items() if a.dtype == torch.uint8}


def _resources(cubin: bytes) -> tuple[int, int]:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = _output("cuobjdump", "-res-usage", file.name)
    usage = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", said)}
    return usage["REG"], usage["STACK"] + usage["LOCAL"]


def disassembled(cubin: bytes) -> str:
    """The cubin's machine instructions; takes longer than compiling."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        return _output("nvdisasm", "-ndf", "-c", file.name)


def _output(tool: str, *words: str) -> str:
    command = [str(BINARIES / tool), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def _metadata(assembly: str) -> tuple[int, int]:
    keys = r"\.(vgpr_count|vgpr_spill_count|sgpr_spill_count|private_segment_fixed_size)"
    found = {key: int(value) for key, value in re.findall(rf"{keys}:\s+(\d+)", assembly)}
    return found.pop("vgpr_count"), sum(found.values())


_PTX = re.compile(r"\b(?:ld|st)\.global(?:\.[a-z]\w*(?:::\w+)*)*?(?:\.v(\d))?\.[bfus](\d+)\s")
_PTX_COPY = re.compile(r"\bcp\.async\.c[ag]\.shared\.global[^,]*, *\[[^]]*\], *(0x[0-9a-f]+|\d+)")
_AMD = re.compile(r"\b(?:global|buffer|flat)_(?:load|store)_[us]?(dword|short|byte)(?:x(\d))?")
_AMD_BITS = {"dword": 32, "short": 16, "byte": 8}


def ptx_accesses(assembly: str) -> Iterator[tuple[str, int]]:
    """Name and bits of each load and store of global memory, asynchronous copies too."""
    for name, line in _lines(assembly):
        if found := _PTX.search(line):
            yield name, int(found[1] or 1) * int(found[2])
        elif found := _PTX_COPY.search(line):
            yield name, 8 * int(found[1], 0)


_PTX_ORDERED = re.compile(r"\b(?:(ld|st|atom|red)\.global|cp\.async\.c[ag])(\S*)\s")


def ptx_order(assembly: str) -> Iterator[tuple[str, str]]:
    """Loads and stores of global memory in their order, each with its pointer's name.

    Among them, named by what they do, the accesses that order them: `release`, `acquire`.
    """
    for name, line in _lines(assembly):
        if found := _PTX_ORDERED.search(line):
            ordering = re.search(r"\b(acquire|release|acq_rel)\b", found[2])
            yield ordering[1] if ordering else (found[1] or "ld"), name


def _amd_accesses(assembly: str) -> Iterator[tuple[str, int]]:
    for name, line in _lines(assembly):
        if found := _AMD.search(line):
            yield name, int(found[2] or 1) * _AMD_BITS[found[1]]


def _lines(assembly: str) -> Iterator[tuple[str, str]]:
    """Every line of assembly, with the pointer that its source line loads or stores.

    Empty where the compiler gives no source line, or merged some: it does for values per channel.
    """
    files = {
        number: folder + "/" * bool(folder) + name
        for number, folder, name in re.findall(
            r'^\s*\.file\s+(\d+)\s+(?:"([^"]*)"\s+)?"([^"]+)"', assembly, re.MULTILINE
        )
    }
    pointer = ""
    for line in assembly.splitlines():
        if place := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line):
            pointer = _pointers(files[place[1]]).get(int(place[2]), "")
        else:
            yield pointer, line


@functools.cache
def _pointers(file: str) -> dict[int, str]:
    """The pointer of the load or store on each line: the first name in its address."""
    found: dict[int, str] = {}
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("tl.load", "tl.store"):
            address = node.args[0]
            while isinstance(address, ast.BinOp):
                address = address.left
            name = ast.unparse(address)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1):
                if found.setdefault(line, name) != name:
                    raise ValueError(f"{file}:{line} loads or stores both {found[line]} and {name}")
    return found
