r"""Group Normalization.

    y = gamma·(x − μ_g)/√(σ²_g + eps) + beta

μ_g and σ²_g (biased) per sample over H,W and the channels of a group; gamma and beta per channel.
Where C is not divisible by `groups`, the largest divisor of C below it is used; `print(layer)`
and the metrics `group_norm_groups_min` and `_max` say which.

Wu & He, "Group Normalization", ECCV 2018, arXiv:1803.08494.
"""

from __future__ import annotations

from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm
from normbench.kernels.grouped import group_norm, largest_group_count
from normbench.registry import Citation, Param, register


def observe(model: nn.Module) -> dict[str, float]:
    """The smallest and the largest number of groups that the model's layers use."""
    used = [m.groups for m in model.modules() if isinstance(m, GroupNorm)]
    if not used:
        return {}
    return {"group_norm_groups_min": min(used), "group_norm_groups_max": max(used)}


@register(
    "group_norm",
    title="Group Normalization",
    family="group",
    equation=r"y = \gamma\,\frac{x-\mu_{g}}{\sqrt{\sigma^2_{g}+\epsilon}}+\beta",
    params={
        "groups": Param("number of groups G; at most this many where C % G ≠ 0", int, minimum=1),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
    },
    citation=Citation(
        "Group Normalization",
        ("Wu, Yuxin", "He, Kaiming"),
        2018,
        "European Conference on Computer Vision (ECCV)",
        "1803.08494",
    ),
    observe=observe,
    policy="Where C is not divisible by `groups`, the largest divisor of C below it; a group "
    "that pools a single value (1×1 maps or N,C input, one channel a group) is refused.",
)
class GroupNorm(ChannelNorm):
    """Normalizes each sample by the statistics of groups of channels; independent of the batch."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        groups: int = 32,
        eps: float | None = None,
        affine: bool | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine)
        self.groups = largest_group_count(num_features, groups)

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where a group has a single value."""
        self.check(x)
        return group_norm(x, self.groups, self.weight, self.bias, self.eps)

    def extra_repr(self) -> str:
        """Also the number of groups in use."""
        return f"{super().extra_repr()}, groups={self.groups}"
