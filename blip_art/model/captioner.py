"""BLIP for captioning: a timm ViT and transformers' BERT decoder, under the original's names.

    model = build_captioner(config.model, tokenizer); loss = model(images, ids)
"""

from __future__ import annotations

from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import nn
from transformers import BertConfig, BertLMHeadModel

from blip_art.config import ModelConfig
from blip_art.errors import UserError
from blip_art.model.tokenizer import CaptionTokenizer

# ViT-B/16 and ViT-L/16 as in BLIP (stochastic depth 0.1 in the large one only). 'tiny' is for
# the demo and tests: small patches, because it learns from nothing. LayerNorm's epsilon is timm's
# 1e-6, which the original weights were trained with.
VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("vit_tiny_patch16_384",
             {"patch_size": 8, "embed_dim": 128, "depth": 3, "num_heads": 2}),
    "base": ("vit_base_patch16_384", {}),
    "large": ("vit_large_patch16_384", {"drop_path_rate": 0.1}),
}


class BlipCaptioner(nn.Module):
    """Picture → caption (Li et al. 2022, https://arxiv.org/abs/2201.12086).

    `visual_encoder` and `text_decoder` carry the parameter names of the original checkpoints.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, pad_id: int, end_id: int,
                 prompt_ids: list[int]) -> None:
        super().__init__()
        self.config = config
        self.vocab_size = vocab_size
        self.pad_id = pad_id
        self.end_id = end_id
        self.prompt_ids = prompt_ids
        name, extra = VITS[config.vit]
        encoder: Any = timm.create_model(
            name, img_size=config.image_size, num_classes=0, global_pool="", **extra)
        self.visual_encoder = encoder
        self.vision_width: int = encoder.num_features
        self.text_decoder = _text_decoder(config, vocab_size, pad_id, self.vision_width)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(B, 3, S, S) normalized pictures → (B, 1 + patches, width), the class token first."""
        return self.visual_encoder(images)

    def hidden(self, image_states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Decoder states (B, L, text_width) of captions given as ids (B, L).

        Padding stands at the end and attention looks back only, so what counts never sees it: no
        mask is needed. transformers would look into a mask for whether it hides anything, at the
        price of waiting for the GPU in the middle of every step.
        """
        bert = self.text_decoder.bert
        return bert.encoder(bert.embeddings(input_ids=ids), encoder_hidden_states=image_states,
                            use_cache=False).last_hidden_state

    def logits(self, images: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Scores (B, L, vocabulary) of the token after each position."""
        return self.text_decoder.cls(self.hidden(self.encode(images), ids))

    def counted(self, ids: torch.Tensor) -> torch.Tensor:
        """Where in ids (B, L), flattened, the tokens stand that carry loss: no prompt, no padding.

        Asked for ids that are still on the CPU, it makes nobody wait for a GPU.
        """
        carries = ids != self.pad_id
        carries[:, :len(self.prompt_ids)] = False
        return carries.flatten().nonzero()[:, 0]

    def forward(self, images: torch.Tensor, ids: torch.Tensor,
                counted: torch.Tensor | None = None) -> torch.Tensor:
        """Mean cross-entropy of the caption tokens, label-smoothed; prompt and padding masked.

        Args:
            images: (B, 3, S, S); ids: (B, L) from CaptionTokenizer.encode.
            counted: of `counted(ids)`.
        """
        counted = self.counted(ids) if counted is None else counted
        states = self.hidden(self.encode(images), ids).flatten(0, 1)
        # Position i - 1 predicts token i. 30,524 logits a position are the largest tensor of the
        # step: only for counted ones.
        logits = self.text_decoder.cls(states[counted - 1])
        return F.cross_entropy(logits.float(), ids.flatten()[counted],
                               label_smoothing=self.config.label_smoothing)

    def set_grad_checkpointing(self) -> None:
        """Recompute activations in the backward pass, in both halves."""
        self.visual_encoder.set_grad_checkpointing(True)
        self.text_decoder.gradient_checkpointing_enable({"use_reentrant": False})


def _text_decoder(config: ModelConfig, vocab_size: int, pad_id: int,
                  vision_width: int) -> BertLMHeadModel:
    decoder = BertLMHeadModel(BertConfig(
        vocab_size=vocab_size, hidden_size=config.text_width,
        num_hidden_layers=config.text_layers, num_attention_heads=config.text_heads,
        intermediate_size=4 * config.text_width, pad_token_id=pad_id,
        hidden_dropout_prob=config.dropout, attention_probs_dropout_prob=config.dropout,
        is_decoder=True, add_cross_attention=True, attn_implementation="sdpa"))
    if vision_width != config.text_width:
        # BERT's cross-attention expects its own width; BLIP's reads the encoder's.
        for layer in decoder.bert.encoder.layer:
            for name in ("key", "value"):
                linear = nn.Linear(vision_width, config.text_width)
                decoder._init_weights(linear)
                setattr(layer.crossattention.self, name, linear)
    # BLIP has no token types: BERT's stay at zero, out of the optimizer and of the files.
    token_types = decoder.bert.embeddings.token_type_embeddings
    nn.init.zeros_(token_types.weight)
    token_types.requires_grad_(False)
    return decoder


def build_captioner(config: ModelConfig, tokenizer: CaptionTokenizer) -> BlipCaptioner:
    """A captioner with random weights (seed torch first) that fits the tokenizer.

    Raises:
        UserError: the prompt cannot be tokenized, or fills model.max_tokens.
    """
    prompt_ids = tokenizer.prompt_ids(config.prompt)
    if config.max_tokens < len(prompt_ids) + 2:
        raise UserError(f"model.max_tokens={config.max_tokens} leaves no room for a caption: the "
                        f"prompt alone has {len(prompt_ids)}, the end one")
    return BlipCaptioner(config, len(tokenizer), tokenizer.pad_id, tokenizer.end_id, prompt_ids)
