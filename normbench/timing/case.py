"""One case of the kernel benchmark: the form of a layer, its input, and the bytes it must move."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from normbench.cells import Cell

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
PARTS = ("forward", "backward", "both")


@dataclass(frozen=True, slots=True)
class Form:
    """What stands at a slot: an activation or none, a residual added before it or none."""

    act: type[nn.Module] | None
    residual: bool

    def activation(self, inplace: bool = False) -> nn.Module | None:
        """The activation, in place where a network would have it so: where autograd allows it."""
        if self.act is nn.ReLU:
            return nn.ReLU(inplace=inplace)
        return None if self.act is None else self.act()


FORMS = {
    "none": Form(None, False),
    "relu": Form(nn.ReLU, False),
    "silu": Form(nn.SiLU, False),
    "add_relu": Form(nn.ReLU, True),
}


@dataclass(frozen=True, slots=True)
class Case:
    """A form at one shape, layout and type.

    Attributes:
        form: key of `FORMS`.
        shape: N, C, H, W.
        layout: key of `LAYOUTS`.
        precision: key of `DTYPES`, the type of the activations; parameters are float32.
    """

    form: str
    shape: tuple[int, int, int, int]
    layout: str
    precision: str

    @classmethod
    def of(cls, cell: Cell) -> Case:
        """The case of a cell of task `kernel`."""
        config = cell.config
        shape = (cell.batch_size, config["channels"], config["height"], config["width"])
        return cls(config["form"], shape, config["layout"], cell.precision)

    def like(self, layout: str, precision: str) -> Case:
        """The same work in another layout and type."""
        return replace(self, layout=layout, precision=precision)

    @property
    def residual(self) -> bool:
        """Whether a residual is added."""
        return FORMS[self.form].residual

    @property
    def elements(self) -> int:
        """Values of the activation."""
        return torch.Size(self.shape).numel()

    @property
    def tensor_bytes(self) -> int:
        """Size of the activation."""
        return self.elements * DTYPES[self.precision].itemsize

    def bytes_to_move(self, part: str, resident: bool) -> float:
        """What a fused layer must read and write, per channel values left out.

        The statistics need one pass over the input and the result another. Where the input stays
        on the chip in between (`resident`), the second read falls away. A residual is read once,
        and leaves a bit an element for the backward of its ReLU, which also writes its gradient.
        """
        if part == "both":
            return sum(self.bytes_to_move(p, resident) for p in ("forward", "backward"))
        streamed, kept = {"forward": (3, 2), "backward": (5, 3)}[part]
        bits = self.elements / 8 if self.residual else 0.0
        return ((kept if resident else streamed) + self.residual) * self.tensor_bytes + bits

    def tensor(self, device: torch.device) -> Tensor:
        """Random numbers, not zeros: those take less power, and run faster."""
        memory_format, dtype = LAYOUTS[self.layout], DTYPES[self.precision]
        x = torch.randn(self.shape, device=device) * 1.5 + 0.5
        return x.to(dtype).contiguous(memory_format=memory_format)

    def inputs(self, device: torch.device) -> Inputs:
        """A fresh set of what the layer and its backward read."""
        x = self.tensor(device).requires_grad_()
        residual = self.tensor(device).requires_grad_() if self.residual else None
        return Inputs(x, residual, self.tensor(device))


@dataclass(frozen=True, slots=True)
class Inputs:
    """Input, residual and the gradient that arrives at the output."""

    x: Tensor
    residual: Tensor | None
    gradient: Tensor

    def forward(self, layer: nn.Module) -> Tensor:
        """The layer's output."""
        given = (self.x,) if self.residual is None else (self.x, self.residual)
        y: Tensor = layer(*given)
        return y

    def backward(self, layer: nn.Module, y: Tensor, keep: bool = False) -> tuple[Tensor, ...]:
        """Gradients of input, residual and parameters; `keep`: the backward can be run again."""
        wanted = [self.x, *([] if self.residual is None else [self.residual])]
        wanted += [p for p in layer.parameters() if p.requires_grad]
        return torch.autograd.grad(y, wanted, self.gradient, retain_graph=keep, allow_unused=True)

    def both(self, layer: nn.Module) -> tuple[Tensor, ...]:
        """The output, then the gradients."""
        y = self.forward(layer)
        return (y, *self.backward(layer, y))
