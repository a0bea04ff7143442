"""Surgery: find the normalizations of a model, put a method in their place, prove it is there."""

from normbench.surgery.folding import FoldReport, fold
from normbench.surgery.replace import swap
from normbench.surgery.report import Slot, SurgeryError, SwapReport
from normbench.surgery.slots import find_slots
from normbench.surgery.timm_layer import norm_layer

__all__ = [
    "FoldReport", "Slot", "SurgeryError", "SwapReport", "find_slots", "fold", "norm_layer", "swap",
]  # fmt: skip
