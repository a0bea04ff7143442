r"""Domain-Specific Batch Normalization (DSBN).

    y = gamma_d·(x − μ_d)/√(σ²_d + eps) + beta_d,  d the domain of the sample

A batch norm for each domain: statistics, running averages, gamma and beta of its own. A batch of
several domains is normalized domain by domain, where the paper and its code give each domain a
batch. Whose a sample is, `normbench.domains.using(ids)` says around the model's forward; without
it every sample is of domain 0, in training and in evaluation.

Domain 0 is the layer's own state under batch norm's names, the others are `others`; the state of a
batch norm is loaded into all of them. Parameters of a domain that does not occur get no gradient.

Chang, You, Seo, Kwak & Han, "Domain-Specific Batch Normalization for Unsupervised Domain
Adaptation", CVPR 2019, arXiv:1906.03950.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from normbench import domains as context
from normbench.kernels.channels import keep_format
from normbench.methods.batch_norm import BatchNorm
from normbench.registry import Citation, Param, register


@register(
    "domain_batch_norm",
    title="Domain-Specific Batch Normalization",
    family="batch",
    equation=r"y = \gamma_d\,\frac{x-\mu_d}{\sqrt{\sigma^2_d+\epsilon}}+\beta_d,\quad"
    r" d = \mathrm{domain}(n)",
    params={
        "domains": Param("number of domains D", int, minimum=1),
        "eps": Param("added to the variance, inside the root", minimum=0, exclusive_minimum=True),
        "affine": Param("learn gamma and beta", kind=bool),
        "momentum": Param("weight of the new batch in the running averages", minimum=0, maximum=1),
    },
    citation=Citation(
        "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation",
        ("Chang, Woong-Gi", "You, Tackgeun", "Seo, Seonguk", "Kwak, Suha", "Han, Bohyung"),
        2019,
        "IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)",
        "1906.03950",
    ),
    policy="As batch_norm for the samples of each domain: in training a domain that occurs needs "
    "two values per channel, else it refuses; one that does not occur keeps its state. Without "
    "normbench.domains.using every sample is of domain 0.",
)
class DomainBatchNorm(BatchNorm):
    """A batch norm for each domain, chosen for each sample by the domain it comes from."""

    def __init__(
        self,
        num_features: int,
        *,
        act: nn.Module | None = None,
        domains: int = 2,
        eps: float | None = None,
        affine: bool | None = None,
        momentum: float = 0.1,
    ) -> None:
        super().__init__(num_features, eps=eps, affine=affine, momentum=momentum)
        self.domains = domains
        self.others = nn.ModuleList(
            BatchNorm(num_features, eps=eps, affine=affine, momentum=momentum)
            for _ in range(1, domains)
        )

    def forward(self, x: Tensor) -> Tensor:
        """N,C,* to the same shape. Raises ValueError where a domain has one value per channel."""
        self.check(x)
        found = context.current(x.shape[0])
        if found is None:
            return super().forward(x)
        if len(found.parts) == 1:
            return self._of(found.parts[0][0], x)
        order, back = found.order.to(x.device), found.back.to(x.device)
        sorted_parts = torch.split(
            context.permuted(x, order, back), [count for _, count in found.parts]
        )
        parts = zip(found.parts, sorted_parts, strict=True)
        y = torch.cat([self._of(domain, part) for (domain, _), part in parts])
        return keep_format(context.permuted(y, back, order), x)

    def _of(self, domain: int, x: Tensor) -> Tensor:
        if domain >= self.domains:
            raise ValueError(
                f"a sample is of domain {domain}, but the layer has domains={self.domains}, "
                f"0 to {self.domains - 1}"
            )
        y: Tensor = super().forward(x) if domain == 0 else self.others[domain - 1](x)
        return y

    def statistics_of(self, x: Tensor) -> Tensor:
        """The samples of `x` that this layer's own averages, those of domain 0, are of."""
        found = context.current(x.shape[0])
        if found is None:
            return x
        count = dict(found.parts).get(0, 0)
        return x.index_select(0, found.order[:count].to(x.device))

    def _load_from_state_dict(
        self, state_dict: MutableMapping[str, Any], prefix: str, *args: Any
    ) -> None:
        """Takes the state of a single batch norm too, for every domain."""
        if not any(name.startswith(f"{prefix}others.") for name in state_dict):
            for name in self._own():
                if prefix + name in state_dict:
                    for number in range(self.domains - 1):
                        state_dict[f"{prefix}others.{number}.{name}"] = state_dict[prefix + name]
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _own(self) -> list[str]:
        own = [*self.named_parameters(recurse=False), *self.named_buffers(recurse=False)]
        return [name for name, _ in own]

    def extra_repr(self) -> str:
        """Also the number of domains."""
        return f"{super().extra_repr()}, domains={self.domains}"
