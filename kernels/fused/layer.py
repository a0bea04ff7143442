"""What the layers of the fused kernels share: the activation they own, and when to step aside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from normbench.kernels.fused.activations import IDENTITY, code_of
from normbench.kernels.fused.dispatch import DTYPES, devices


class KernelLayer(nn.Module):
    """Mixed into a layer that has kernels: whether they run on an input."""

    _devices: frozenset[str]

    def find_devices(self) -> None:
        """Look which devices are at hand; not at every input, as compilers follow those."""
        self._devices = devices()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """A pickled layer may wake up where other devices are at hand."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.find_devices()

    def takes(self, x: Tensor) -> bool:
        """Whether the kernels run on this input."""
        return x.device.type in self._devices and x.dtype in DTYPES


class FusedNorm(KernelLayer):
    """Mixed into a layer: its forward is act(norm(x) + residual), the residual where it takes one.

    On devices and for types that the kernels do not take, the same is composed of eager layers.
    An activation that the kernels do not know is applied after them.
    """

    act: nn.Module | None

    def own(self, act: nn.Module | None) -> None:
        """Take over the activation that follows the slot."""
        self.act = act
        self._coded = (act,)  # in a tuple, it is no submodule
        code = code_of(act)
        self._code = IDENTITY if code is None else code
        self._act_outside = code is None
        self.find_devices()

    def finish(self, y: Tensor, residual: Tensor | None) -> Tensor:
        """Residual and activation, composed."""
        y = y if residual is None else y + residual
        return y if self.act is None else self.act(y)

    def fused(
        self, x: Tensor, residual: Tensor | None, kernel: Callable[[Tensor | None, int], Tensor]
    ) -> Tensor:
        """Call `kernel(residual, act)` with what it can fuse, and do the rest after it."""
        if self.act is not self._coded[0]:  # surgery takes an activation back by assigning
            self.own(self.act)
        if residual is not None and (residual.shape != x.shape or residual.dtype != x.dtype):
            return self.finish(kernel(None, IDENTITY), residual)
        y = kernel(residual, self._code)
        return self.act(y) if self._act_outside and self.act is not None else y
