"""Pictures to tensors as BLIP was trained: crops and RandAugment, or a plain resize.

    train_transform(384)(picture)  # (3, 384, 384), random from torch's generator
"""

from __future__ import annotations

import math
from typing import Callable, Dict, List

import torch
from PIL import Image
from torchvision.transforms import (
    Compose,
    Normalize,
    RandomHorizontalFlip,
    RandomResizedCrop,
    Resize,
    ToTensor,
)
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

FILL = [128, 128, 128]
HIGHEST_LEVEL = 10
Transform = Callable[[Image.Image], torch.Tensor]


def train_transform(image_size: int) -> Transform:
    """Random crop, flip and RandAugment(2, 5)."""
    return Compose([
        RandomResizedCrop(image_size, scale=(0.5, 1.0), interpolation=InterpolationMode.BICUBIC),
        RandomHorizontalFlip(), RandAugment(count=2, level=5), *_to_input()])


def eval_transform(image_size: int) -> Transform:
    """The whole picture, squeezed to a square."""
    size = [image_size, image_size]
    return Compose([Resize(size, interpolation=InterpolationMode.BICUBIC), *_to_input()])


def _to_input() -> List[Callable[..., torch.Tensor]]:
    return [ToTensor(), Normalize(CLIP_MEAN, CLIP_STD)]


class RandAugment:
    """`count` operations drawn with replacement, each applied with probability one half.

    torchvision's own RandAugment draws from other operations, at other magnitudes.
    """

    def __init__(self, count: int, level: int) -> None:
        self.count, self.share = count, level / HIGHEST_LEVEL

    def __call__(self, picture: Image.Image) -> Image.Image:
        for _ in range(self.count):
            name = list(OPERATIONS)[int(torch.randint(len(OPERATIONS), (1,)))]
            if torch.rand(1) < 0.5:
                sign = 1 if torch.rand(1) < 0.5 else -1
                picture = OPERATIONS[name](picture, self.share, sign)
        return picture


def _enhance(share: float) -> float:
    """0.1 to 1.9; the original's level 5 of 10 gives 1, which changes nothing."""
    return share * 1.8 + 0.1


def _shear(picture: Image.Image, x: float, y: float) -> Image.Image:
    # The upper left corner stays, as in the original; torchvision would keep the centre.
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return F.affine(picture, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees,
                    interpolation=InterpolationMode.BILINEAR, fill=FILL, center=[0, 0])


def _translate(picture: Image.Image, x: int, y: int) -> Image.Image:
    return F.affine(picture, angle=0.0, translate=[x, y], scale=1.0, shear=[0.0, 0.0],
                    interpolation=InterpolationMode.BILINEAR, fill=FILL)


def _rotate(picture: Image.Image, degrees: float) -> Image.Image:
    return F.rotate(picture, degrees, InterpolationMode.BILINEAR, fill=FILL)


# Each takes a picture, the share of the highest level, and a sign.
OPERATIONS: Dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "Identity": lambda picture, share, sign: picture,
    "AutoContrast": lambda picture, share, sign: F.autocontrast(picture),
    "Brightness": lambda picture, share, sign: F.adjust_brightness(picture, _enhance(share)),
    "Sharpness": lambda picture, share, sign: F.adjust_sharpness(picture, _enhance(share)),
    "Equalize": lambda picture, share, sign: F.equalize(picture),
    "ShearX": lambda picture, share, sign: _shear(picture, sign * share * 0.3, 0.0),
    "ShearY": lambda picture, share, sign: _shear(picture, 0.0, sign * share * 0.3),
    "TranslateX": lambda picture, share, sign: _translate(picture, sign * int(share * 10), 0),
    "TranslateY": lambda picture, share, sign: _translate(picture, 0, sign * int(share * 10)),
    "Rotate": lambda picture, share, sign: _rotate(picture, sign * share * 30),
}
