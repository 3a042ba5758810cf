"""What every peer of a benchmark does: take a spec, answer JSON lines with JSON lines.

    serve(lambda spec: {"caption": function, "encode": function, "train": function})
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Callable, Dict

import torch

Operation = Callable[..., Any]


def serve(build: Callable[[Dict[str, Any]], Dict[str, Operation]]) -> None:
    """Answer until stdin closes. An operation's seconds are those of its call."""
    # What the peer prints must not stand among the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = json.loads(sys.argv[1])
    torch.manual_seed(0)
    operations = build(spec)
    for line in sys.stdin:
        request = json.loads(line)
        work = operations[request.pop("do")](**request)
        synchronize(spec["device"])
        if spec["device"] == "cuda":
            torch.cuda.reset_peak_memory_stats()
        began = time.perf_counter()
        answer = work()
        synchronize(spec["device"])
        seconds = time.perf_counter() - began
        peak = torch.cuda.max_memory_allocated() / 1e9 if spec["device"] == "cuda" else 0.0
        answers.write(json.dumps({"seconds": seconds, "peak_gb": peak, **(answer or {})}) + "\n")
        answers.flush()


def synchronize(device: str) -> None:
    """Wait for the GPU, if it is one."""
    if device == "cuda":
        torch.cuda.synchronize()


def pictures(spec: Dict[str, Any], batch: int) -> torch.Tensor:
    """The same random pictures in every process, (batch, 3, S, S) fp32."""
    generator = torch.Generator().manual_seed(1)
    side = spec["image_size"]
    return torch.randn(batch, 3, side, side, generator=generator).to(spec["device"])
