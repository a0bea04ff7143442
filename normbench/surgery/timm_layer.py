"""A `norm_layer=` for `timm.create_model`, and the check it needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from normbench import registry
from normbench.surgery.carry import INHERITED
from normbench.surgery.kinds import Mark, own_method, take_apart, walk
from normbench.surgery.report import SurgeryError
from normbench.surgery.slots import find_slots


class NormLayer:
    """What `norm_layer` returns a subclass of: calling it builds the method's layer.

    A class, since timm accepts only classes, functions and strings. Models that fuse norm and
    activation refuse an unknown class; a function they would accept, and lose the activation
    without a word.
    """

    method: str
    params: dict[str, Any]

    def __new__(  # type: ignore[misc]
        cls,
        num_features: int,
        eps: float | None = None,
        affine: bool | None = None,
        device: Any = None,
        dtype: Any = None,
    ) -> nn.Module:
        """Build the layer; the model's `eps` and `affine` count where the method leaves them open.

        Args:
            num_features: channels.
            eps: from the model.
            affine: from the model.
            device: from the model.
            dtype: from the model.
        """
        params = registry.resolve_params(cls.method, cls.params)
        for name, value in zip(INHERITED, (eps, affine), strict=True):
            if name in params and params[name] is None:
                params[name] = value
        layer = registry.build(cls.method, num_features, **params).to(device=device, dtype=dtype)
        layer.normbench_mark = Mark(cls.method, num_features, eps, affine is not False)  # type: ignore[assignment]
        return layer

    @classmethod
    def check(cls, model: nn.Module, example_input: torch.Tensor | None = None) -> int:
        """Count the method's layers in a model built with this, and see the model run.

        Args:
            model: from `timm.create_model(..., norm_layer=this)`.
            example_input: needed where the model has no timm configuration.

        Raises:
            SurgeryError: if a BatchNorm is left, the method is nowhere, or the model does not run:
                most timm models honour `norm_layer` only in part or not at all, and those with
                channels last hand an N,C,* layer the wrong layout.
        """
        modules = list(walk(model))
        left = [name for name, module in modules if isinstance(module, _BatchNorm)]
        count = sum(own_method(module) == cls.method for _, module in modules)
        if left or not count:
            others = {type(m).__name__ for _, m in modules if take_apart(m) is not None}
            found = ", ".join(left[:5]) + "…" * (len(left) > 5) if left else ", ".join(others)
            what = f"BatchNorm is left at {found}" if left else f"it has {found or 'no norm'}"
            raise SurgeryError(
                f"{type(model).__name__} does not honour norm_layer: {what}, and {count} layers of "
                f"{cls.method}; use normbench.swap"
            )
        find_slots(model, example_input)
        return count


def norm_layer(method: str, **params: Any) -> type[NormLayer]:
    """A class for `timm.create_model(..., norm_layer=norm_layer("group_norm", groups=8))`.

    Few models honour it throughout. Call `.check(model)` on the result, which raises where
    BatchNorm is left; `swap` is the road that always works. Models that fuse norm and activation
    (EfficientNet, RegNet, DenseNet ...) refuse it with timm's own assertion.

    Args:
        method: a method of the catalogue.
        **params: its parameters.

    Raises:
        RegistryError: for an unknown method or parameter.
    """
    # timm replaces classes by lower-cased name with its own: no name of ours may be one of its.
    name = f"normbench_{registry.variant(method, params)}"
    return type(name, (NormLayer,), {"method": method, "params": dict(params)})
