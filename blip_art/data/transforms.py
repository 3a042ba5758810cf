"""Pictures to tensors as BLIP was trained: crops and RandAugment, or a plain resize.

    pixels = TrainTransform(384)(picture)  # (384, 384, 3) bytes, random from torch's generator
    images = to_input(torch.stack([pixels]))  # (1, 3, 384, 384), normalized

Bytes to the end: floats of a picture are four times as many, to make, and to send between processes
and to the GPU. The device normalizes them.
"""

from __future__ import annotations

import functools
import math
from typing import Callable, Dict, Tuple

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms import functional as F
from torchvision.transforms.functional import InterpolationMode

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

FILL = [128, 128, 128]
HIGHEST_LEVEL = 10
# Of a picture's area and of width to height.
CROP_SCALE, CROP_RATIO = (0.5, 1.0), (3 / 4, 4 / 3)


class TrainTransform:
    """Random crop, flip and RandAugment(2, 5): (S, S, 3) bytes.

    torch resizes bytes, faster than Pillow (bench/results/loader.md) and to within two grey levels
    of it, even of noise.
    """

    def __init__(self, image_size: int) -> None:
        self.size = (image_size, image_size)
        self.augment = RandAugment(count=2, level=5)

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        top, left, height, width = RandomResizedCrop.get_params(
            picture, list(CROP_SCALE), list(CROP_RATIO))
        crop = _pixels(picture)[top:top + height, left:left + width]
        # Strides as of a channels-last batch, for which torch has the fast code.
        resized = interpolate(crop.permute(2, 0, 1)[None], self.size, mode="bicubic",
                              antialias=True)
        if torch.rand(1) < 0.5:
            resized = resized.flip(-1)
        return _pixels(self.augment(Image.fromarray(resized[0].permute(1, 2, 0).numpy())))


class EvalTransform:
    """The whole picture, squeezed to a square, (S, S, 3) bytes; by Pillow, as the original."""

    def __init__(self, image_size: int) -> None:
        self.size = (image_size, image_size)

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return _pixels(picture.resize(self.size, Image.Resampling.BICUBIC))


def smallest_side(image_size: int) -> int:
    """Pixels that a picture must have on its shorter side so that no crop is enlarged."""
    return math.ceil(image_size / math.sqrt(CROP_SCALE[0] * CROP_RATIO[0]))


def to_input(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes (B, S, S, 3), on any device, to the model's normalized (B, 3, S, S) fp32."""
    mean, std = _mean_and_std(pixels.device)
    images = pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return images.div_(255).sub_(mean).div_(std)


@functools.cache
def _mean_and_std(device: torch.device) -> Tuple[torch.Tensor, torch.Tensor]:
    """Sent once: the host waits for what it sends."""
    with torch.inference_mode(False):
        return (torch.tensor(CLIP_MEAN, device=device)[:, None, None],
                torch.tensor(CLIP_STD, device=device)[:, None, None])


def _pixels(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture))


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


def _enhanced(enhance: Callable[[Image.Image, float], Image.Image], picture: Image.Image,
              share: float) -> Image.Image:
    """By 0.1 to 1.9; the original's level 5 of 10 gives 1, which changes nothing."""
    factor = share * 1.8 + 0.1
    return picture if factor == 1 else enhance(picture, factor)


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
    "Brightness": lambda picture, share, sign: _enhanced(F.adjust_brightness, picture, share),
    "Sharpness": lambda picture, share, sign: _enhanced(F.adjust_sharpness, picture, share),
    "Equalize": lambda picture, share, sign: F.equalize(picture),
    "ShearX": lambda picture, share, sign: _shear(picture, sign * share * 0.3, 0.0),
    "ShearY": lambda picture, share, sign: _shear(picture, 0.0, sign * share * 0.3),
    "TranslateX": lambda picture, share, sign: _translate(picture, sign * int(share * 10), 0),
    "TranslateY": lambda picture, share, sign: _translate(picture, 0, sign * int(share * 10)),
    "Rotate": lambda picture, share, sign: _rotate(picture, sign * share * 30),
}
