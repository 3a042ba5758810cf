"""Memory of tensors, and their way to a GPU.

    keep_freed_memory()  # once, before tensors are made
    ids = sent(ids, device)
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

# Of glibc's malloc.h.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Use the memory of freed tensors again instead of giving it back to the system.

    Else the system clears each page anew for each large tensor: about an eighth of a caption's time
    and a twentieth of a training step's on two cores. The peak is the same where batches are alike,
    and a fiftieth to an eighth higher where each was of another size (two runs).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    # Another C library has other means; a glibc that refuses the first is better left as it is.
    if mallopt is not None and mallopt(M_MMAP_THRESHOLD, 2**31 - 1):
        mallopt(M_TRIM_THRESHOLD, -1)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on the device; a GPU is not waited for, as it would be for unpinned memory."""
    return (tensor.pin_memory() if device.type == "cuda" else tensor).to(device, non_blocking=True)
