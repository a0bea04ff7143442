"""Whether the layers of a swapped model run their kernels is in the report, and never a warning."""

from __future__ import annotations

import made_up_kernels
import pytest
import timm
import torch
from made_up_kernels import NAME, NO_CUDA

import normbench


def notes(dtype: torch.dtype = torch.float32) -> list[str]:
    model = timm.create_model("test_resnet", num_classes=2).to(dtype)
    return list(normbench.swap(model, NAME).notes)


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "float32"), (torch.float64, "float64")]
)
def test_a_fallback_is_one_note(with_kernels: str, dtype: torch.dtype, name: str) -> None:
    """Warnings are errors here, so this also shows that there is none."""
    assert notes(dtype) == [f"on cpu in {name} the layers run their eager path: {NO_CUDA}"]


def test_kernels_that_run_need_no_note(with_kernels: str) -> None:
    made_up_kernels.register(made_up_kernels.runs)
    assert notes() == []
