"""Weights in: original .pth, transformers' folders, our safetensors. Weights out: safetensors.

    load_weights(model, "model_base_caption_capfilt_large.pth"); save_weights(model, path)
"""

from __future__ import annotations

import dataclasses
import json
import math
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blip_art.digest import BLANK, check_digest, write_digest
from blip_art.errors import UserError
from blip_art.files import PathLike, read_json, written_aside
from blip_art.model.captioner import BlipCaptioner
from blip_art.model.hf import from_hf
from blip_art.model.hub import cached_repository
from blip_art.model.unpickle import load_pth

# Parts of BLIP's pre-training and retrieval models that a captioner does not have. Such a file
# loads "almost" and then writes gibberish, so it is refused by name.
_FOREIGN = ("text_encoder.", "text_encoder_m.", "visual_encoder_m.", "image_queue", "text_queue",
            "ptr_queue", "itm_head.", "vision_proj.", "text_proj.")
# Recomputed, tied or always zero: never stored by us and never missed in a file.
_DERIVED = ("text_decoder.bert.embeddings.position_ids",
            "text_decoder.bert.embeddings.token_type_embeddings.weight",
            "text_decoder.cls.predictions.decoder.weight",
            "text_decoder.cls.predictions.decoder.bias")
_FLOATS = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
# Our key in safetensors' metadata; what stands before the digest; the longest header we look at.
_KEY = "blip_art"
_BEFORE_DIGEST = f'"{_KEY}":"{{\\"digest\\": \\"'.encode()
_HEADER_MAX = 4 << 20
_HF_WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def load_weights(model: BlipCaptioner, source: str) -> None:
    """Fill `model` from a file, a folder or a hub name that is in the local cache.

    Position embeddings of another picture size are interpolated.

    Raises:
        UserError: nothing there, not weights, weights of another architecture (names the first
            keys that are missing, unexpected or of another shape), or a pre-training file.
    """
    state = _normalized(read_state(source))
    foreign = sorted({part for name in state for part in _FOREIGN if name.startswith(part)})
    if foreign:
        raise UserError(f"{source} is a pre-training or retrieval checkpoint (it has "
                        f"{', '.join(foreign)}), not a captioning one; use for example "
                        "model_base_caption_capfilt_large.pth")
    own = {name: tensor for name, tensor in model.state_dict().items() if name not in _DERIVED}
    position = "visual_encoder.pos_embed"
    if position in state and _is_square_grid(state[position], own[position]):
        state[position] = resize_positions(state[position], own[position].shape[1])
    problems = find_problems(state, own)
    if problems:
        raise UserError(f"{source} does not fit model.vit={model.config.vit} with "
                        f"{model.vocab_size} tokens: {'; '.join(problems)}")
    model.load_state_dict(state, strict=False)


def find_problems(state: Any, wanted: dict[str, Tensor]) -> list[str]:
    """How the tensors of `state` differ from `wanted` in name, shape or kind of number."""
    if not isinstance(state, dict):
        return ["no tensors"]
    both = [(name, state[name], wanted[name]) for name in sorted(wanted.keys() & state.keys())]
    tensors = [(name, a, b) for name, a, b in both if isinstance(a, Tensor)]
    return (
        _named("missing", set(wanted) - set(state))
        + _named("unexpected", {str(name) for name in set(state) - set(wanted)})
        + _named("no tensors", {name for name, a, _ in both if not isinstance(a, Tensor)})
        + _named("of another shape", {f"{name} {tuple(a.shape)} for {tuple(b.shape)}"
                                      for name, a, b in tensors if a.shape != b.shape})
        + _named("of another type", {f"{name} {a.dtype} for {b.dtype}" for name, a, b in tensors
                                     if a.dtype != b.dtype and {a.dtype, b.dtype} - _FLOATS}))


def save_weights(model: BlipCaptioner, path: PathLike,
                 identity: Mapping[str, Any] | None = None) -> None:
    """Write the weights, whole or not at all; the header has the model's configuration, which
    training they come from, and a digest of the file.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    state = {name: tensor.detach().cpu().contiguous()
             for name, tensor in model.state_dict().items() if name not in _DERIVED}
    # A run's own name is left out: trainings with equal settings and weights make equal files.
    training = {name: value for name, value in (identity or {}).items() if name != "run"}
    # One key: safetensors writes several in no fixed order.
    metadata = {_KEY: json.dumps({"digest": BLANK, "model": dataclasses.asdict(model.config),
                                  "training": training})}
    try:
        with written_aside(path) as aside:
            save_file(state, aside, metadata=metadata)
            place = _digest_place(aside)
            assert place
            write_digest(aside, place)
    except SafetensorError as error:
        raise UserError(f"cannot write {path} ({error}); free space") from error


def _digest_place(path: Path) -> int | None:
    """Where in the header the digest stands; None in a file that `save_weights` did not write."""
    with open(path, "rb") as file:
        header = file.read(min(int.from_bytes(file.read(8), "little"), _HEADER_MAX))
    at = header.find(_BEFORE_DIGEST)
    return 8 + at + len(_BEFORE_DIGEST) if at >= 0 else None


def read_state(source: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, under whatever names it has.

    Raises:
        UserError: nothing there, damaged, or not weights.
    """
    path = Path(source).expanduser()
    mode = _mode(path)
    if stat.S_ISDIR(mode):
        return _read_folder(path)
    if mode and not stat.S_ISREG(mode):  # a pipe would be waited for
        raise UserError(f"{path} is neither file nor folder; give the weights' own path")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if mode or path.suffix in (".pth", ".pt", ".bin"):
        return _read_pth(path)
    return _read_folder(cached_repository(source, "weights"))


def _mode(path: Path) -> int:
    """What kind of file is there, as in stat(2); 0 for nothing."""
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return 0
    except OSError as error:  # too long a name, or a folder that may not be searched
        raise UserError(f"cannot read weights at {path}: {error.strerror}; give another path"
                        ) from error


def _read_folder(folder: Path) -> dict[str, Tensor]:
    config = folder / "config.json"
    values = read_json(config) if config.exists() else {}
    kind = values.get("model_type", "blip") if isinstance(values, dict) else "unknown"
    if kind != "blip":
        raise UserError(f"{folder} holds a '{kind}' model, not BLIP (its config.json says so)")
    found = next((folder / name for name in _HF_WEIGHTS if (folder / name).is_file()), None)
    if found is None:
        raise UserError(f"folder {folder} has no weights ({' or '.join(_HF_WEIGHTS)})")
    return read_state(str(found))


def _read_pth(path: Path) -> dict[str, Tensor]:
    checkpoint = load_pth(path)
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not all(
            isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()):
        raise UserError(f"{path} holds no model weights (no 'model' entry of tensors)")
    for name, tensor in state.items():  # one number can stand for any shape, and fill the memory
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise UserError(f"{path} is damaged ({name} has fewer numbers than its shape "
                            f"{tuple(tensor.shape)} says); fetch it again")
    return dict(state)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Compared with its digest where it has one: those of other tools have none."""
    try:
        place = _digest_place(path)
        if place and not check_digest(path, place):
            raise UserError(f"{path} is damaged or cut short (its content is not what its digest "
                            "was made of); copy it again, or let a training write it again")
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"no weights at {path}") from error
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError,
            RuntimeError, MemoryError) as error:
        reason = (str(error) or type(error).__name__).split("\n")[0]
        raise UserError(f"{path} is no safetensors file or is cut short ({reason}); "
                        "fetch or write it again") from error


def _normalized(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names, without DDP's prefix and what is derived."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in from_hf(state).items() if name not in _DERIVED}


def _is_square_grid(positions: Tensor, wanted: Tensor) -> bool:
    """Whether these are embeddings of a class token and a square of patches, as wide as wanted."""
    count = positions.shape[1] - 1 if positions.dim() == 3 else 0
    return (count > 0 and math.isqrt(count) ** 2 == count and positions.dtype in _FLOATS
            and (positions.shape[0], positions.shape[2]) == (wanted.shape[0], wanted.shape[2]))


def resize_positions(positions: Tensor, count: int) -> Tensor:
    """Interpolate (1, 1 + g·g, width) position embeddings to `count` positions, bicubic.

    The class token's stays (Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929, 3.2).
    """
    if positions.shape[1] == count:
        return positions
    old, new = (round((n - 1) ** 0.5) for n in (positions.shape[1], count))
    token, grid = positions[:, :1], positions[:, 1:]
    grid = grid.reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = F.interpolate(grid.float(), size=(new, new), mode="bicubic", align_corners=False)
    return torch.cat([token, grid.permute(0, 2, 3, 1).flatten(1, 2).to(token.dtype)], dim=1)


def _named(what: str, names: set[str]) -> list[str]:
    if not names:
        return []
    first = ", ".join(sorted(names)[:3])
    return [f"{len(names)} {what} ({first}{', …' if len(names) > 3 else ''})"]
