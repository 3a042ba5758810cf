"""kernels.cu on a GPU: compiled by NVRTC, which torch brings along, so that no compiler is needed.

    kernels = load_kernels(device, torch.float16)         # None: do without
    x, y = kernels.add_norm(x, added, norm, keep_sum=True)

Between matrix products torch reads and writes memory once an operation. Where anything is missing,
or a kernel does not compute what torch does, there are no kernels and torch's operations serve.
"""

from __future__ import annotations

import ctypes
import functools
import warnings
from importlib import resources
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WARPS = 4  # a block
MOST_WORDS, HEAD_WIDTH = 128, 64
MOST_ROWS = 8  # of a picture
SHARED_BYTES = 48 * 2**10  # that every GPU has for a block


class Kernels:
    """The functions of kernels.cu for one type of half precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    def add_norm(self, x: Tensor, added: Tensor, norm: nn.LayerNorm,
                 keep_sum: bool) -> tuple[Tensor, Tensor]:
        """The sum, or its norm in fp32, and the norm in half precision.

        Args:
            x: (…, width) in fp32; a sum takes its place.
            added: (…, width) in half precision.
        """
        width = x.shape[-1]
        kept = x if keep_sum else torch.empty_like(x)
        normed = torch.empty_like(added)
        rows = x.numel() // width
        _compiled("add_norm", self._dtype, WIDTH=width, KEEP_SUM=int(keep_sum))(
            grid=(-(-rows // WARPS), 1, 1), block=(32 * WARPS, 1, 1),
            args=[x, added, norm.weight, norm.bias, kept, normed, rows, norm.eps])
        return kept, normed

    def attend_path(self, qkv: Tensor, past: Tensor, paths: Tensor, start: int) -> Tensor:
        """Self-attention of new words (B, R, 3·heads·64), whose keys and values go to the past.

        Args:
            past: (2, B, heads, length·R, 64); paths: (B, R, length), see step.State.
            start: the position of the new words, below MOST_WORDS.
        """
        batch, rows, length = paths.shape
        heads = past.shape[2]
        out = qkv.new_empty(batch, rows, heads * 64)
        _compiled("attend_path", self._dtype, ROWS=rows, HEADS=heads)(
            grid=(-(-batch * rows * heads // WARPS), 1, 1), block=(32 * WARPS, 1, 1),
            args=[qkv, past[0], past[1], paths, out, batch, length, start])
        return out

    def attend_picture(self, query: Tensor, seen: Tensor) -> Tensor:
        """Attention of queries (B, R, heads·64), R up to MOST_ROWS, to a picture's patches.

        Args:
            seen: (2, B, heads, patches, 64), keys and values, a view of contiguous
                (B, patches, 2, heads, 64).
        """
        batch, rows, _ = query.shape
        heads, patches = seen.shape[2:4]
        out = torch.empty_like(query)
        _compiled("attend_picture", self._dtype, ROWS=rows, HEADS=heads, PATCHES=patches)(
            grid=(batch * heads, 1, 1), block=(256, 1, 1), args=[query, seen, out])
        return out


def fits_picture(rows: int, seen: Tensor) -> bool:
    """Whether attend_picture takes so many rows, and keys and values of such a layout."""
    patches, width = seen.shape[3:]
    return (rows <= MOST_ROWS and width == HEAD_WIDTH
            and 4 * rows * (patches + 8 * HEAD_WIDTH) <= SHARED_BYTES
            and seen.permute(1, 3, 0, 2, 4).is_contiguous())


@functools.cache
def load_kernels(device: torch.device, dtype: torch.dtype) -> Kernels | None:
    """Kernels that were seen to compute what torch computes; they run on the current device."""
    if (device.type != "cuda" or device.index not in (None, torch.cuda.current_device())
            or dtype is torch.float32 or torch.version.hip):
        return None
    kernels = Kernels(dtype)
    if as_torch(kernels, device, dtype):
        return kernels
    warnings.warn("captions do without the kernels of this package, which fail here; slower",
                  stacklevel=2)
    return None


def as_torch(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels compute what torch computes, on random numbers."""
    try:
        return all(check(kernels, device, dtype) for check in (
            _adds_and_norms, _attends_path, _attends_picture))
    except torch.OutOfMemoryError:
        raise
    # Private parts of torch, a library or a driver may be other than those this was written for.
    except (AttributeError, ImportError, OSError, RuntimeError, TypeError):
        return False


def serves(norm: nn.LayerNorm) -> bool:
    """Whether add_norm takes rows of this width and type."""
    width = norm.normalized_shape[0]
    return width % 128 == 0 and width <= 1024 and norm.weight.dtype is torch.float32


def _adds_and_norms(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> bool:
    with torch.inference_mode():
        generator = torch.Generator(device).manual_seed(0)
        x, added = torch.randn(2, 7, 256, device=device, generator=generator)
        norm = nn.LayerNorm(256, device=device)
        nn.init.normal_(norm.weight, generator=generator)
        nn.init.normal_(norm.bias, generator=generator)
        total = x + added.to(dtype)
        right = norm(total)
        normed, half = kernels.add_norm(x.clone(), added.to(dtype), norm, keep_sum=False)
        kept, again = kernels.add_norm(x.clone(), added.to(dtype), norm, keep_sum=True)
        return bool(torch.allclose(normed, right, atol=1e-5) and torch.equal(half, again)
                    and torch.allclose(kept, total, atol=1e-6)
                    and torch.allclose(half.float(), right, atol=4 * torch.finfo(dtype).eps))


def _attends_path(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> bool:
    batch, rows, heads, length, start = 3, 3, 4, 40, 35
    with torch.inference_mode():
        generator = torch.Generator(device).manual_seed(0)

        def some(*shape: int) -> Tensor:
            return torch.randn(shape, device=device, generator=generator).to(dtype)
        qkv = some(batch, rows, 3 * heads * 64)
        past = some(2, batch, heads, length * rows, 64)
        paths = torch.randint(rows, (batch, rows, length), device=device, generator=generator)
        query, keys, values = qkv.float().view(batch, rows, 3, heads, 64).permute(2, 0, 3, 1, 4)
        places = torch.arange(start, device=device) * rows + paths[:, :, :start]
        said = past.float()[:, torch.arange(batch, device=device)[:, None, None], :, places]
        said = said.permute(3, 0, 4, 1, 2, 5)  # (2, batch, heads, rows, start, 64)
        right = F.scaled_dot_product_attention(
            query[:, :, :, None], torch.cat([said[0], keys[:, :, :, None]], 3),
            torch.cat([said[1], values[:, :, :, None]], 3))[:, :, :, 0]
        out = kernels.attend_path(qkv, past, paths, start)
        new = past[:, :, :, start * rows:(start + 1) * rows].float()
        return bool(torch.equal(new, torch.stack([keys, values])) and torch.allclose(
            out.float(), right.transpose(1, 2).flatten(2), atol=4 * torch.finfo(dtype).eps))


def _attends_picture(kernels: Kernels, device: torch.device, dtype: torch.dtype) -> bool:
    with torch.inference_mode():
        generator = torch.Generator(device).manual_seed(0)
        query = torch.randn(2, 3, 4 * 64, device=device, generator=generator).to(dtype)
        seen = torch.randn(2, 77, 2, 4, 64, device=device, generator=generator).to(dtype)
        seen = seen.permute(2, 0, 3, 1, 4)
        right = F.scaled_dot_product_attention(
            query.float().view(2, 3, 4, 64).transpose(1, 2), *seen.float())
        out = kernels.attend_picture(query, seen)
        return bool(torch.allclose(out.float(), right.transpose(1, 2).flatten(2),
                                   atol=4 * torch.finfo(dtype).eps))


@functools.cache
def _compiled(name: str, dtype: torch.dtype, **defined: int) -> Any:
    from torch.cuda import _utils  # not public, so its absence is borne

    major, minor = torch.cuda.get_device_capability()
    code = compile_cuda(f"sm_{major}{minor}", HALF_IS_BF16=int(dtype is torch.bfloat16), **defined)
    return _utils._cuda_load_module(code, [name])[name]


def compile_cuda(architecture: str, **defined: int) -> bytes:
    """Machine code of kernels.cu for a GPU such as "sm_70"; no GPU is needed.

    Raises:
        RuntimeError: it could not be compiled.
    """
    from torch.cuda import _utils

    nvrtc = _utils._get_gpu_rtc_library()
    source = (resources.files("blip_art.model") / "kernels.cu").read_bytes()
    options = [f"--gpu-architecture={architecture}", "--std=c++17",
               *(f"-D{name}={value}" for name, value in defined.items())]
    program = ctypes.c_void_p()
    failed = nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"kernels.cu", 0, None, None)
    failed = failed or nvrtc.nvrtcCompileProgram(
        program, len(options), (ctypes.c_char_p * len(options))(*map(str.encode, options)))
    what = "ProgramLog" if failed else "CUBIN"
    size = ctypes.c_size_t()
    getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
    text = ctypes.create_string_buffer(size.value)
    getattr(nvrtc, f"nvrtcGet{what}")(program, text)
    nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise RuntimeError(text.value.decode())
    return text.raw
