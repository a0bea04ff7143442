"""The most memory that work takes, and the largest batch that fits into a budget."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from normbench.tasks.outcome import out_of_memory
from normbench.timing.profiling import raw_events

GIB = 2**30


@dataclass(frozen=True, slots=True)
class Peak:
    """Bytes at the height of a run.

    Attributes:
        allocated: of tensors.
        reserved: that the allocator took from the device for them; 0 on a CPU, where it keeps none.
    """

    allocated: int
    reserved: int = 0


def peak(run: Callable[[], object], device: torch.device) -> Peak:
    """Run once and tell its height above what was in use before.

    On a CPU the allocations that torch's profiler reports are added up; what libraries beneath
    torch take for themselves is not among them.
    """
    if device.type == "cuda":
        return _cuda_peak(run, device)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in raw_events(profiler) if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return Peak(most)


def in_use(device: torch.device) -> Peak:
    """What tensors and the allocator hold now; zeros on a CPU, whose allocator does not count."""
    gc.collect()
    if device.type != "cuda":
        return Peak(0)
    torch.cuda.synchronize(device)
    torch._C._cuda_clearCublasWorkspaces()  # else whoever comes second finds them there
    torch.cuda.empty_cache()
    return Peak(torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device))


def _cuda_peak(run: Callable[[], object], device: torch.device) -> Peak:
    before = in_use(device)
    torch.cuda.reset_peak_memory_stats(device)
    run()
    torch.cuda.synchronize(device)
    return Peak(
        torch.cuda.max_memory_allocated(device) - before.allocated,
        torch.cuda.max_memory_reserved(device) - before.reserved,
    )


@dataclass(frozen=True, slots=True)
class Line:
    """Memory as a straight line of the batch size, through two measured points.

    A height is the maximum over time of what grows linearly, hence convex in the batch: beyond its
    points the line lies below it, and the batch it tells is at least the one that fits.

    Attributes:
        fixed: bytes that do not depend on the batch: weights, their gradients, the optimizer.
        per_sample: bytes that each sample adds.
    """

    fixed: float
    per_sample: float

    @classmethod
    def through(cls, batch: int, bytes_: float, other: int, bytes_other: float) -> Line:
        """The line through two points.

        Raises:
            ValueError: if they have the same batch.
        """
        if batch == other:
            raise ValueError(f"two points at batch {batch} make no line")
        slope = (bytes_other - bytes_) / (other - batch)
        return cls(bytes_ - slope * batch, slope)

    def at(self, batch: int) -> float:
        """Bytes at a batch size."""
        return self.fixed + self.per_sample * batch

    def largest(self, budget: float) -> int:
        """The largest batch within a budget in bytes, 0 if none is; only where samples cost."""
        if self.per_sample <= 0:
            raise ValueError("samples that take no memory have no largest batch")
        return max(0, int((budget - self.fixed) // self.per_sample))


def largest_batch(fits: Callable[[int], bool], guess: int) -> int:
    """The largest batch that fits, by doubling steps away from a guess and bisection between.

    Supposes that what fits at a batch fits at every smaller one.

    Args:
        fits: tries one batch.
        guess: where to begin, at least 1.

    Returns:
        A batch that fits while the next larger one does not; 0 if not even 1 fits.
    """
    step = max(1, guess // 16)
    low, high = 0, 0  # `low` fits, `high` does not, once they are known
    if fits(guess):
        low = guess
        while not high:
            tried = low + step
            low, high = (tried, 0) if fits(tried) else (low, tried)
            step *= 2
    else:
        high = guess
        while not low and high > 1:
            tried = max(1, high - step)
            low, high = (tried, high) if fits(tried) else (0, tried)
            step *= 2
    while high - low > 1:
        tried = (low + high) // 2
        low, high = (tried, high) if fits(tried) else (low, tried)
    return low


def fits_cuda(
    run: Callable[[int], object], budget: float, device: torch.device
) -> Callable[[int], bool]:
    """Whether a batch runs while torch's allocator may take no more than a budget.

    Args:
        run: builds the batch and does the work.
        budget: bytes; the CUDA context is not among them.
        device: a CUDA device.
    """
    total = torch.cuda.get_device_properties(device).total_memory

    def fits(batch: int) -> bool:
        torch.cuda.set_per_process_memory_fraction(min(1.0, budget / total), device)
        try:
            run(batch)
            torch.cuda.synchronize(device)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return False
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, device)
            gc.collect()
            torch.cuda.empty_cache()
        return True

    return fits
