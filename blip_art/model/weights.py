"""Weights in: original .pth, transformers' folders, our safetensors. Weights out: safetensors.

    load_weights(model, "model_base_caption_capfilt_large.pth"); save_weights(model, path)
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from blip_art.config import ModelConfig
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
    if position in state and state[position].shape[-1] == own[position].shape[-1]:
        state[position] = resize_positions(state[position], own[position].shape[1])
    problems = (
        _named("missing", own.keys() - state.keys())
        + _named("unexpected", state.keys() - own.keys())
        + _named("of another shape", {
            f"{name} {tuple(state[name].shape)} for {tuple(own[name].shape)}"
            for name in own.keys() & state.keys() if own[name].shape != state[name].shape}))
    if problems:
        raise UserError(f"{source} does not fit model.vit={model.config.vit} with "
                        f"{model.vocab_size} tokens: {'; '.join(problems)}")
    model.load_state_dict(state, strict=False)


def save_weights(model: BlipCaptioner, path: PathLike) -> None:
    """Write the weights and, in the header, the model's configuration; whole or not at all."""
    state = {name: tensor.detach().cpu().contiguous()
             for name, tensor in model.state_dict().items() if name not in _DERIVED}
    # One key: safetensors writes several in no fixed order, and equal weights are equal files.
    metadata = {"blip_art": json.dumps(dataclasses.asdict(model.config))}
    try:
        with written_aside(path) as aside:
            save_file(state, aside, metadata=metadata)
    except SafetensorError as error:
        raise UserError(f"cannot write {path} ({error}); free space") from error


def saved_model_config(path: PathLike) -> ModelConfig | None:
    """The configuration in the header of a file `save_weights` wrote, else None."""
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get("blip_art")
    return ModelConfig(**json.loads(text)) if text else None


def read_state(source: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, under whatever names it has."""
    path = Path(source).expanduser()
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.exists() or path.suffix in (".pth", ".pt", ".bin"):
        checkpoint = load_pth(path)
        state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
        if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
            raise UserError(f"{path} holds no model weights (no 'model' entry of tensors)")
        return dict(state)
    return _read_folder(cached_repository(source, "weights"))


def _read_folder(folder: Path) -> dict[str, Tensor]:
    config = folder / "config.json"
    if config.exists() and read_json(config).get("model_type") not in ("blip", None):
        raise UserError(f"{folder} holds a '{read_json(config)['model_type']}' model, not BLIP")
    found = next((folder / name for name in _HF_WEIGHTS if (folder / name).exists()), None)
    if found is None:
        raise UserError(f"folder {folder} has no weights ({' or '.join(_HF_WEIGHTS)})")
    return read_state(str(found))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        raise UserError(f"no weights at {path}") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file or is cut short ({error}); "
                        "fetch or write it again") from error


def _normalized(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our names, without DDP's prefix and what is derived."""
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in from_hf(state).items() if name not in _DERIVED}


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
