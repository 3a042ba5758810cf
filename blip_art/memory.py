"""Memory of tensors, and their way to a GPU.

    keep_freed_memory()  # once, before tensors are made
    ids = sent(ids, device)
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from blip_art.errors import UserError

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Use the memory of freed tensors again instead of giving it back to the system.

    Else the system clears each page anew for each large tensor: about an eighth of a caption's time
    and a twentieth of a training step's on two cores. The peak is the same where batches are alike,
    and a fiftieth to an eighth higher where each was of another size (two runs). Large pictures
    would be kept too, so they are decoded in pieces or in another process (data/large.py).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Another C library has other means; a glibc that refuses the first is better left as it is.
    if mallopt is not None and mallopt(M_MMAP_THRESHOLD, 2**31 - 1):
        mallopt(M_TRIM_THRESHOLD, -1)


@contextlib.contextmanager
def explain_out_of_memory(fix: str) -> Iterator[None]:
    """Say what to do when the GPU has too little memory for what is done in the block.

    Raises:
        UserError: it has, and `fix` helps.
    """
    try:
        yield
    except RuntimeError as error:
        # What the driver and cuBLAS say, where no allocator of PyTorch is asked.
        if not isinstance(error, torch.OutOfMemoryError) and not any(
                sign in str(error) for sign in ("CUDA error: out of memory", "ALLOC_FAILED")):
            raise
        what = ". ".join(str(error).split(". ")[:2]).rstrip(".")
        raise UserError(f"the GPU is out of memory ({what}); {fix}") from error


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; a GPU is not waited for, as it would be for unpinned memory."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
