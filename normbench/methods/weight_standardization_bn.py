r"""Weight Standardization, with Batch Normalization at the slots.

    Ŵ = (W − μ_w)/(σ_w + 1e-5),    y = gamma·(Ŵ∗x − μ)/√(σ² + eps) + beta

The weights as in `weight_standardization`, the slots as in `batch_norm`: the paper's combination
for large batches.

Qiao, Wang, Liu, Shen & Yuille, "Micro-Batch Training with Batch-Channel Normalization and Weight
Standardization", 2019, arXiv:1903.10520.
"""

from __future__ import annotations

from normbench.methods.batch_norm import BatchNorm
from normbench.methods.weight_standardization import standardize
from normbench.registry import Citation, Param, register


@register(
    "weight_standardization_bn",
    title="Weight Standardization with Batch Normalization",
    family="weight",
    equation=r"\hat W_{o} = \frac{W_{o}-\mu_{o}}{\sigma_{o}+\epsilon},\quad"
    r" y = \mathrm{BN}(\hat W * x)",
    params={
        "eps": Param("added to the batch's variance", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Micro-Batch Training with Batch-Channel Normalization and Weight Standardization",
        ("Qiao, Siyuan", "Wang, Huiyu", "Liu, Chenxi", "Shen, Wei", "Yuille, Alan"),
        2019,
        "arXiv preprint",
        "1903.10520",
    ),
    weight=standardize,
    policy="At slots as batch_norm. Convolutions whose filters are a single number, and those "
    "that standardize already, are left alone.",
)
class WeightStandardizedBatchNorm(BatchNorm):
    """Standardizes the filters of every convolution; batch normalization at the slots."""
