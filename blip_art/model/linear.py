"""Linear maps as inference wants them: several in one, in one type, and on the CPU through oneDNN.

    both = FastLinear(torch.bfloat16, query, key); x = both(x)
    with FastLinears(model.visual_encoder, torch.float32): model.encode(images)

torch's own path on the CPU is MKL, which on two cores of an AMD EPYC did 200 GFLOP/s in fp32 where
oneDNN did 480, and read weights at 10 GB/s where oneDNN did so at 31 to 47 when a batch had twelve
rows, as a step of a decoder has (bench/results/caption_cpu_fp32.md has what it comes to).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows that a decoder's step has about: the layout of weights is chosen for them.
FEW_ROWS = 16
_ONEDNN = ("_linear_pointwise", "_reorder_linear_weight", "_is_mkldnn_bf16_supported")


class FastLinear:
    """Several linear maps of the same input as one, for inference only: no gradients."""

    def __init__(self, dtype: torch.dtype, *maps: nn.Linear, few_rows: bool = True) -> None:
        """Copy the weights where that makes one of several, another type or another layout.

        Args:
            few_rows: whether inputs have about as many rows as beams; else thousands.
        """
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
            return F.linear(x, self.weight, self.bias)
        # The operator behind torch.compile's; it is not public, so its absence is borne.
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


class FastLinears:
    """All linear maps of a module, fast inside a `with` block; nothing changes on a GPU."""

    def __init__(self, module: nn.Module, dtype: torch.dtype) -> None:
        self._fast = {m: FastLinear(dtype, m, few_rows=False) for m in module.modules()
                      if isinstance(m, nn.Linear) and _has_onednn(m.weight.device, dtype)}

    def __enter__(self) -> None:
        for linear, fast in self._fast.items():
            # An attribute of its own hides the method until it is deleted.
            vars(linear)["forward"] = fast

    def __exit__(self, *_: object) -> None:
        for linear in self._fast:
            del vars(linear)["forward"]


def _one(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _has_onednn(device: torch.device, dtype: torch.dtype) -> bool:
    operators: Any = torch.ops.mkldnn
    return (device.type == "cpu" and torch.backends.mkldnn.is_available()
            and all(hasattr(operators, name) for name in _ONEDNN)
            and (dtype is torch.float32 or dtype is torch.bfloat16
                 and operators._is_mkldnn_bf16_supported()))
