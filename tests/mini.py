"""A data set and a configuration so small that real training takes seconds.

    config = write_mini(tmp_path); python -m blip_art.train config.yaml --run RUN
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw

from blip_art.model.tokenizer import train_vocabulary

COLOURS = ("red", "green", "blue", "yellow")
SHAPES = ("square", "circle")


def write_mini(folder: Path, train: int = 32, val: int = 7) -> Path:
    """Pictures of one coloured shape each, their lists, a vocabulary and config.yaml."""
    rng = random.Random(0)
    (folder / "pictures").mkdir(parents=True)
    for split, count in (("train", train), ("val", val)):
        pairs = []
        for number in range(1, count + 1):
            colour, shape = rng.choice(COLOURS), rng.choice(SHAPES)
            name = f"{split}_{number}.png"
            picture = Image.new("RGB", (40, 32), "white")
            x, y = rng.randint(0, 20), rng.randint(0, 12)
            draw = ImageDraw.Draw(picture)
            (draw.rectangle if shape == "square" else draw.ellipse)((x, y, x + 16, y + 16), colour)
            picture.save(folder / "pictures" / name)
            pairs.append({"image": name, "caption": f"{colour}, {shape}", "image_id": str(number)})
        (folder / f"{split}.json").write_text(json.dumps(pairs))
    train_vocabulary(["a picture of", *(f"{c}, {s}" for c in COLOURS for s in SHAPES)], folder, 150)
    (folder / "config.yaml").write_text(f"""
name: mini
data: {{images: {folder}/pictures, annotations: {folder}, train: train.json, val: val.json,
        val_gt: '', num_workers: 1}}
model: {{vit: tiny, image_size: 32, tokenizer: {folder}, text_width: 32, text_layers: 1,
         text_heads: 2}}
train: {{epochs: 2, batch_size: 4, lr: 1e-3}}
generate: {{batch_size: 2, max_length: 12}}
""")
    return folder / "config.yaml"
