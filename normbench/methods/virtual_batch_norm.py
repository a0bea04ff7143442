r"""Virtual Batch Normalization: each sample by a fixed reference batch and itself.

    y = gamma·(x − μ)/√(E[x²] − μ² + eps) + beta
    μ = (1 − a)·μ_ref + a·μ_n,  E[x²] = (1 − a)·E_ref[x²] + a·E_n[x²],  a = 1/(B + 1)

μ_n and E_n[x²] over H,W of sample n; μ_ref and E_ref[x²] over N,H,W of the reference batch, of B
samples, which itself is normalized by its own statistics alone, as in the authors' code. Training
and evaluation are the same.

The reference batch is the first training batch, and what is kept of it are its moments per channel,
`reference_mean` and `reference_var` (biased); `reference_size` is B, or 0 before there is one. This
is where a layer that stands alone departs from the paper: there the reference batch goes through
the network anew at each step, so that its moments follow the weights and carry gradient; here they
stay those of the first step, constant, and only the sample's share carries gradient.

Salimans et al., "Improved Techniques for Training GANs", NeurIPS 2016, arXiv:1606.03498.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normbench.kernels.channels import ChannelNorm, as_float
from normbench.kernels.mean_and_variance import mean_and_variance
from normbench.registry import Citation, Param, register


@register(
    "virtual_batch_norm",
    title="Virtual Batch Normalization",
    family="batch",
    equation=r"y = \gamma\,\frac{x-\mu}{\sqrt{\overline{x^2}-\mu^2+\epsilon}}+\beta,\quad"
    r" \mu = \frac{B\,\mu_{\mathrm{ref}}+\mu_{n}}{B+1},\quad"
    r" \overline{x^2} = \frac{B\,\overline{x^2_{\mathrm{ref}}}+\overline{x^2_{n}}}{B+1}",
    params={
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
    },
    citation=Citation(
        "Improved Techniques for Training GANs",
        (
            "Salimans, Tim", "Goodfellow, Ian", "Zaremba, Wojciech", "Cheung, Vicki",
            "Radford, Alec", "Chen, Xi",
        ),
        2016,
        "Advances in Neural Information Processing Systems (NeurIPS)",
        "1606.03498",
    ),
    policy="The first training batch is the reference; its moments are kept and do not follow the "
    "weights. Evaluated before there is one, each sample is normalized by itself. Two values per "
    "channel in training, else it refuses.",
)  # fmt: skip
class VirtualBatchNorm(ChannelNorm):
    """Normalizes each sample by the moments of the first training batch and a share of its own."""

    reference_mean: Tensor
    reference_var: Tensor
    reference_size: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        eps: float | None = None,
        affine: bool | None = None,
    ) -> None:
        super().__init__(num_features, eps, affine)
        self.register_buffer("reference_mean", torch.zeros(num_features))
        self.register_buffer("reference_var", torch.ones(num_features))
        self.register_buffer("reference_size", torch.tensor(0, dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError for one value per channel in training."""
        self.check(x)
        if self.training:
            self.check_batch(x)
        wide = as_float(x) if x.dim() > 2 else as_float(x).unsqueeze(2)
        own_mean, own_var = mean_and_variance(wide, range(2, wide.dim()), keepdim=True)
        share = 1 / (self.reference_size + 1).to(wide.dtype)
        like = (1, -1, *own_mean.shape[2:])
        mean, var = (as_float(t).view(like) for t in (self.reference_mean, self.reference_var))
        if self.training:
            mean, var, share = self._referred(own_mean, own_var, mean, var, share)
        # The moments of the mixture; as variances, where differences of squares would lose digits.
        var = torch.lerp(var, own_var, share) + share * (1 - share) * (own_mean - mean).square()
        mean = torch.lerp(mean, own_mean, share)
        scale = torch.rsqrt(var + self.eps)
        if self.weight is None or self.bias is None:
            y = torch.addcmul(-mean * scale, wide, scale)
        else:
            scale = scale * as_float(self.weight).view(like)
            y = torch.addcmul(as_float(self.bias).view(like) - mean * scale, wide, scale)
        return y.view_as(x).to(x.dtype)

    def _referred(
        self, own_mean: Tensor, own_var: Tensor, mean: Tensor, var: Tensor, share: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Moments and share to go by: those kept, or this batch's alone where it is the first."""
        first = self.reference_size == 0
        batch_mean = own_mean.mean(0, keepdim=True)
        batch_var = (own_var + (own_mean - batch_mean).square()).mean(0, keepdim=True)
        mean, var = torch.where(first, batch_mean, mean), torch.where(first, batch_var, var)
        share = share * ~first
        with torch.no_grad():
            self.reference_mean.copy_(mean.flatten())
            self.reference_var.copy_(var.flatten())
            self.reference_size.add_(first * len(own_mean))
        return mean, var, share
