"""Linear maps: on the CPU through oneDNN; for inference also several in one, and in one type.

    both = FastLinear(torch.bfloat16, query, key); x = both(x)
    with replaced(fast_linears(model.visual_encoder, torch.float32)): model.encode(images)
    with replaced(trained_linears(model)): model(images, ids).backward()

torch's own path on the CPU is MKL, which on two cores of an AMD EPYC did 200 GFLOP/s in fp32 where
oneDNN did 480, and read weights at 10 GB/s where oneDNN did so at 31 to 47 when a batch had twelve
rows, as a step of a decoder has (bench/results/caption_cpu_fp32.md has what it comes to).
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Modules, and what they are computed with instead.
Forwards = dict[nn.Module, Callable[..., Tensor]]
# Rows that a decoder's step has about: the layout of weights is chosen for them.
FEW_ROWS = 16
_ONEDNN = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")


class FastLinear:
    """Several linear maps of the same input as one, for inference only: no gradients."""

    def __init__(self, dtype: torch.dtype, *maps: nn.Linear, few_rows: bool = True,
                 gelu: bool = False) -> None:
        """Copy the weights where that makes one of several, another type or another layout.

        Args:
            few_rows: whether inputs have about as many rows as beams; else thousands.
            gelu: take GELU of the result, which oneDNN does while it is still in the cache.
        """
        self.gelu = gelu
        with torch.no_grad():
            self.weight = _one([m.weight.detach() for m in maps]).to(dtype)
            self.bias = _one([m.bias.detach() for m in maps]).to(dtype)
            self.out_features = len(self.bias)
            self._onednn = _has_onednn(self.weight.device, dtype)
            if self._onednn and few_rows:
                self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, FEW_ROWS)

    def __call__(self, x: Tensor) -> Tensor:
        x = x.to(self.bias.dtype)
        if not self._onednn:
            out = F.linear(x, self.weight, self.bias)
            return F.gelu(out) if self.gelu else out
        return _onednn(x, self.weight, self.bias, "gelu" if self.gelu else "none")

    def write(self, x: Tensor, out: Tensor) -> None:
        """The same to a contiguous tensor, by torch's own product."""
        assert not self.gelu
        torch.addmm(self.bias, x.to(self.bias.dtype).flatten(0, -2), self.weight.t(),
                    out=out.view(-1, self.out_features))


def as_linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear map of these weights (out, in), which are not copied."""
    linear = nn.Linear(1, 1, device="meta")
    linear.weight, linear.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
    return linear


@contextlib.contextmanager
def replaced(forwards: Forwards) -> Iterator[None]:
    """Another `forward` for some modules."""
    for module, forward in forwards.items():
        # An attribute of its own hides the method until it is deleted.
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module in forwards:
            del vars(module)["forward"]


def fast_linears(module: nn.Module, dtype: torch.dtype) -> Forwards:
    """For all linear maps of a module what is faster without gradients, if anything is.

    On a GPU that is weights in half precision, which autocast would make anew for every batch.
    """
    return {m: FastLinear(dtype, m, few_rows=False) for m in module.modules()
            if isinstance(m, nn.Linear) and (
                _has_onednn(m.weight.device, dtype)
                or (m.weight.is_cuda and dtype is not torch.float32))}


def trained_linears(module: nn.Module) -> Forwards:
    """For all linear maps of a module in fp32 what is faster with gradients; none on a GPU."""
    return {m: functools.partial(_trained, m) for m in module.modules()
            if isinstance(m, nn.Linear) and _has_onednn(m.weight.device, torch.float32)}


def _trained(linear: nn.Linear, x: Tensor) -> Tensor:
    out: Tensor = _WithGradients.apply(x, linear.weight, linear.bias)
    return out


class _WithGradients(torch.autograd.Function):
    """x·Wᵀ + b; the gradients are g·W, gᵀ·x and the sum of g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad = grads[0]
        to_x = to_weight = to_bias = None
        if ctx.needs_input_grad[0]:
            to_x = _onednn(grad, weight.t(), None)
        rows = grad.flatten(0, -2)
        if ctx.needs_input_grad[1]:
            turned = x.flatten(0, -2).t()
            # Where there are more outputs than inputs, copying the smaller factor pays (measured).
            if weight.shape[0] > weight.shape[1]:
                turned = turned.contiguous()
            to_weight = _onednn(rows.t(), turned, None)
        if ctx.needs_input_grad[2]:
            to_bias = rows.sum(0)
        return to_x, to_weight, to_bias


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, then: str = "none") -> Tensor:
    """The operator behind torch.compile's; it is not public, so its absence is borne."""
    # The last word chooses among kinds of GELU: BERT's and timm's is the exact one.
    kind = "none" if then == "gelu" else ""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], kind)
    return out


def _one(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    operators: Any = torch.ops.mkldnn
    return (device.type == "cpu" and torch.backends.mkldnn.is_available()
            and all(hasattr(operators, name) for name in _ONEDNN)
            and (dtype is torch.float32 or dtype is torch.bfloat16
                 and operators._is_mkldnn_bf16_supported()))
