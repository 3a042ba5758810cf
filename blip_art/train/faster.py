"""What a training step is computed with instead of the model's own modules.

    with replaced(faster_steps(model, config.train.compile, dtype)): model(images, ids).backward()
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from blip_art.errors import UserError
from blip_art.model.captioner import BlipCaptioner
from blip_art.model.linear import Forwards, trained_linears
from blip_art.own_folder import own_folder

# Texts are padded to multiples of it, so that few lengths are compiled.
COMPILED_LENGTH = 8


def faster_steps(model: BlipCaptioner, backend: str, dtype: torch.dtype | None,
                 graphs: bool = True) -> Forwards:
    """Encoder and decoder as torch.compile makes them, for the steps alone: captions are another
    kind of work, and a compiled module would be compiled anew for it. Without a backend, linear
    maps through oneDNN where there is one and `dtype`, autocast's, is None.

    Args:
        graphs: record what a GPU does in a step (CUDA graphs): asking for its thousands of
            operations one by one takes the host longer than they take an H100. Not where gradients
            are accumulated, for a graph writes them to the same place each time; and with several
            GPUs it was never tried.

    Raises:
        UserError: torch has no such backend, it lacks a compiler, or it cannot do without graphs,
            or what it compiles is kept in a folder of another user's.
    """
    if not backend:
        return trained_linears(model) if dtype is None else {}
    known = torch.compiler.list_backends()
    if backend not in known and backend not in ("eager", "aot_eager"):
        raise UserError(f"train.compile: no backend '{backend}'; this torch has {', '.join(known)}")
    if backend == "cudagraphs" and not graphs:
        raise UserError("train.compile=cudagraphs is for one GPU, without train.accumulate; leave "
                        "it out")
    # Triton asks for them in this order.
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    if backend == "inductor" and not any(map(shutil.which, compilers)):
        raise UserError(f"train.compile=inductor needs a C compiler ({' or '.join(compilers)}), "
                        "and there is none here"
                        + ("; train.compile=cudagraphs needs none" if graphs else ""))
    _check_cache()
    record = backend == "inductor" and graphs and next(model.parameters()).is_cuda
    options: Any = {"triton.cudagraphs": True} if record else None
    halves: tuple[Any, ...] = (model.visual_encoder, model.text_decoder.bert.encoder)
    return {half: torch.compile(half.forward, backend=backend, dynamic=False, options=options)
            for half in halves}


def _check_cache() -> None:
    """torch runs what lies in /tmp/torchinductor_USER, whoever has put it there."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir  # slow, for this alone

    if not own_folder(Path(default_cache_dir())):
        raise UserError(f"train.compile keeps code in {default_cache_dir()}, which is not yours "
                        "alone; remove it or set TMPDIR to a folder that is")
