"""The original implementation, from a clone of it, in a benchmark; see serve.py.

Runs in an environment of its own: torch, transformers 4.35.2, timm 0.4.12, fairscale 0.4.13. The
clone must have no changes; its prompt is what tests of equal captions need.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import Any, Dict

import torch

from bench.peers.serve import Operation, pictures, serve

END = 102


def build(spec: Dict[str, Any]) -> Dict[str, Operation]:
    """The operations of a benchmark."""
    # It asks for "bert-base-uncased", which stands in the folder of the weights.
    os.chdir(spec["folder"])
    sys.path.insert(0, spec["original"])
    from models.blip import blip_decoder  # type: ignore

    model = blip_decoder(spec["pth"], image_size=spec["image_size"], vit="base",
                         med_config=os.path.join(spec["original"], "configs/med_config.json"))
    model.to(spec["device"]).eval()
    said = []
    generate = model.text_decoder.generate

    def listened(**options: Any) -> Any:
        # It repeats the pictures for their beams, which transformers has done itself since.
        for name in ("encoder_hidden_states", "encoder_attention_mask"):
            options[name] = options[name][::options["num_beams"]]
        said.append(generate(**options))
        return said[-1]

    model.text_decoder.generate = listened

    @functools.cache
    def caption(batch: int) -> Operation:
        images = pictures(spec, batch)

        @torch.inference_mode()
        def work() -> Dict[str, Any]:
            model.generate(images, sample=False, num_beams=3, max_length=20, min_length=5)
            rows = said.pop().tolist()
            return {"ids": [ids[:ids.index(END)] if END in ids else ids
                            for ids in (row[model.prompt_length:] for row in rows)]}
        return work

    @functools.cache
    def train(batch: int) -> Operation:
        model.train()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.05)
        images = pictures(spec, batch)

        def work() -> Dict[str, Any]:
            loss = model(images, spec["texts"][:batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return {"loss": loss.item()}
        return work

    def loss(batch: int) -> Operation:
        @torch.no_grad()
        def work() -> Dict[str, Any]:
            loss = model.eval()(pictures(spec, batch), spec["texts"][:batch]).item()
            model.train()
            return {"loss": loss}
        return work

    return {"caption": caption, "train": train, "loss": loss}


if __name__ == "__main__":
    serve(build)
