"""The names and files of transformers' BlipForConditionalGeneration, both ways.

    state = from_hf(safetensors_state);  save_hf(model, tokenizer, "folder")
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor
from transformers import BlipConfig, BlipImageProcessor, BlipProcessor

from blip_art.files import PathLike
from blip_art.model.captioner import BlipCaptioner
from blip_art.model.tokenizer import CaptionTokenizer

# (ours, transformers'); the text decoder has the same names on both sides.
_RENAMES = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.norm.", "vision_model.post_layernorm."),
)
_BLOCK_RENAMES = (
    ("attn.qkv.", "self_attn.qkv."), ("attn.proj.", "self_attn.projection."),
    ("norm1.", "layer_norm1."), ("norm2.", "layer_norm2."), ("mlp.", "mlp."),
)


def _rename(name: str, to_hf: bool) -> str:
    for ours, theirs in _RENAMES:
        old, new = (ours, theirs) if to_hf else (theirs, ours)
        if name.startswith(old):
            return new + name[len(old):]
    ours, theirs = "visual_encoder.blocks.", "vision_model.encoder.layers."
    block = re.fullmatch(re.escape(ours if to_hf else theirs) + r"(\d+\.)(.+)", name)
    if not block:
        return name
    for part in _BLOCK_RENAMES:
        old, new = part if to_hf else part[::-1]
        if block[2].startswith(old):
            return (theirs if to_hf else ours) + block[1] + new + block[2][len(old):]
    return name


def from_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """transformers' parameter names → ours; names that are not BLIP's come back unchanged."""
    return {_rename(name, to_hf=False): tensor for name, tensor in state.items()}


def to_hf(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our parameter names → transformers'."""
    return {_rename(name, to_hf=True): tensor for name, tensor in state.items()}


def hf_config(model: BlipCaptioner, tokenizer: CaptionTokenizer) -> BlipConfig:
    """A BlipConfig under which transformers computes what we compute.

    Its defaults differ from the original: LayerNorm epsilon 1e-5 in the ViT, no label smoothing,
    no dropout.
    """
    vit: Any = model.visual_encoder
    config = model.config
    return BlipConfig(
        vision_config={
            "hidden_size": model.vision_width, "num_hidden_layers": len(vit.blocks),
            "num_attention_heads": vit.blocks[0].attn.num_heads,
            "intermediate_size": vit.blocks[0].mlp.fc1.out_features,
            "image_size": config.image_size, "patch_size": vit.patch_embed.patch_size[0],
            "layer_norm_eps": 1e-6},
        text_config={
            "vocab_size": model.vocab_size, "hidden_size": config.text_width,
            "encoder_hidden_size": model.vision_width, "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads, "intermediate_size": 4 * config.text_width,
            "hidden_dropout_prob": config.dropout, "attention_probs_dropout_prob": config.dropout,
            "label_smoothing": config.label_smoothing, "pad_token_id": tokenizer.pad_id,
            "bos_token_id": tokenizer.dec_id, "sep_token_id": tokenizer.end_id,
            # transformers' generate drops the last prompt token, whatever it is.
            "eos_token_id": tokenizer.end_id},
        architectures=["BlipForConditionalGeneration"])


def save_hf(model: BlipCaptioner, tokenizer: CaptionTokenizer, folder: PathLike) -> Path:
    """Write a folder that BlipForConditionalGeneration and BlipProcessor load.

    Pass the processor the prompt 'a picture of ' to get the same captions as here.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()
             if "token_type" not in name and "cls.predictions.decoder." not in name}
    save_file(to_hf(state), target / "model.safetensors", metadata={"format": "pt"})
    hf_config(model, tokenizer).save_pretrained(target)
    size = {"height": model.config.image_size, "width": model.config.image_size}
    BlipProcessor(BlipImageProcessor(size=size), tokenizer.bert).save_pretrained(target)
    return target
