"""Pictures to tensors as BLIP was trained: crops and RandAugment, or a plain resize.

    pixels = TrainTransform(384)(picture)  # (3, 384, 384) bytes, random from torch's generator
    images = to_input(torch.stack([pixels]))  # (1, 3, 384, 384), normalized

Bytes to the end: floats of a picture are four times as many, to make, and to send between processes
and to the GPU. The device normalizes them. What else was measured: torch resizes bytes five times
as fast as Pillow; turning planes into a Pillow picture took two fifths of all until it went plane
by plane; torchvision's v2 operations on bytes are as slow as Pillow's, or slower. JPEG files are
decoded at a half or less where crops would still be larger than S, which pictures of 500 pixels
never are. A cache of smaller copies was not built: decoding is a quarter of the work at 500 pixels,
and the copies would cost inodes.
"""

from __future__ import annotations

import functools
import math
from typing import Callable, Dict, Iterable, List, Tuple

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
    """Random crop, flip and RandAugment(2, 5): (3, S, S) bytes.

    torch resizes bytes, faster than Pillow (bench/results/loader.md) and to within two grey levels
    of it, even of noise.
    """

    def __init__(self, image_size: int) -> None:
        self.size = (image_size, image_size)
        self.augment = RandAugment(count=2, level=5)

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        top, left, height, width = RandomResizedCrop.get_params(
            picture, list(CROP_SCALE), list(CROP_RATIO))
        crop = torch.from_numpy(np.array(picture))[top:top + height, left:left + width]
        # Strides as of a channels-last batch, for which torch has the fast code.
        planes, = interpolate(crop.permute(2, 0, 1)[None], self.size, mode="bicubic",
                              antialias=True)
        if torch.rand(1) < 0.5:
            planes = planes.flip(-1)
        drawn = self.augment.draw()
        return _planes(self.augment.apply(drawn, _picture(planes))) if drawn else planes


class EvalTransform:
    """The whole picture, squeezed to a square, (3, S, S) bytes; by Pillow, as the original."""

    def __init__(self, image_size: int) -> None:
        self.size = (image_size, image_size)

    def __call__(self, picture: Image.Image) -> torch.Tensor:
        return _planes(picture.resize(self.size, Image.Resampling.BICUBIC))


def smallest_side(image_size: int) -> int:
    """Pixels that a picture must have on its shorter side so that no crop is enlarged."""
    return math.ceil(image_size / math.sqrt(CROP_SCALE[0] * CROP_RATIO[0]))


def to_input(pixels: torch.Tensor) -> torch.Tensor:
    """Bytes (B, 3, S, S), on any device, to the model's input: (x / 255 - mean) / std in fp32."""
    scale, shift = _scale_and_shift(pixels.device)
    return pixels.float().mul_(scale).add_(shift)


@functools.cache
def _scale_and_shift(device: torch.device) -> Tuple[torch.Tensor, torch.Tensor]:
    """Sent once: the host waits for what it sends."""
    with torch.inference_mode(False):
        mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None]
                     for values in (CLIP_MEAN, CLIP_STD))
        return (1 / (255 * std)).float().to(device), (-mean / std).float().to(device)


def _planes(picture: Image.Image) -> torch.Tensor:
    """Colour by colour, which is twice as fast as turning rows of three colours."""
    planes = torch.empty(3, picture.height, picture.width, dtype=torch.uint8)
    for plane, band in zip(planes.numpy(), picture.split()):
        plane[:] = np.asarray(band)
    return planes


def _picture(planes: torch.Tensor) -> Image.Image:
    return Image.merge("RGB", [Image.fromarray(plane.numpy()) for plane in planes])


class RandAugment:
    """`count` operations drawn with replacement, each applied with probability one half.

    torchvision's own RandAugment draws from other operations, at other magnitudes.
    """

    def __init__(self, count: int, level: int) -> None:
        self.count, self.share = count, level / HIGHEST_LEVEL

    def __call__(self, picture: Image.Image) -> Image.Image:
        return self.apply(self.draw(), picture)

    def draw(self) -> List[Tuple[str, int]]:
        """Names and signs of operations, without those that would change nothing."""
        drawn = []
        for _ in range(self.count):
            name = list(OPERATIONS)[int(torch.randint(len(OPERATIONS), (1,)))]
            if torch.rand(1) < 0.5:
                drawn.append((name, 1 if torch.rand(1) < 0.5 else -1))
        return [(name, sign) for name, sign in drawn if name != "Identity" and not
                (name in ("Brightness", "Sharpness") and _factor(self.share) == 1)]

    def apply(self, operations: Iterable[Tuple[str, int]], picture: Image.Image) -> Image.Image:
        """What was drawn, one after the other."""
        for name, sign in operations:
            picture = OPERATIONS[name](picture, self.share, sign)
        return picture


def _factor(share: float) -> float:
    """From 0.1 to 1.9; the original's level 5 of 10 gives 1, which changes nothing."""
    return share * 1.8 + 0.1


def _shear(picture: Image.Image, x: float, y: float) -> Image.Image:
    # The upper left corner stays, as in the original; torchvision would keep the centre.
    degrees = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return F.affine(picture, angle=0.0, translate=[0, 0], scale=1.0, shear=degrees,
                    interpolation=InterpolationMode.BILINEAR, fill=FILL, center=[0, 0])


def _translate(picture: Image.Image, x: int, y: int) -> Image.Image:
    # By whole pixels: nothing is interpolated.
    moved = Image.new(picture.mode, picture.size, tuple(FILL))
    moved.paste(picture, (x, y))
    return moved


def _rotate(picture: Image.Image, degrees: float) -> Image.Image:
    return F.rotate(picture, degrees, InterpolationMode.BILINEAR, fill=FILL)


# Each takes a picture, the share of the highest level, and a sign.
OPERATIONS: Dict[str, Callable[[Image.Image, float, int], Image.Image]] = {
    "Identity": lambda picture, share, sign: picture,
    "AutoContrast": lambda picture, share, sign: F.autocontrast(picture),
    "Brightness": lambda picture, share, sign: F.adjust_brightness(picture, _factor(share)),
    "Sharpness": lambda picture, share, sign: F.adjust_sharpness(picture, _factor(share)),
    "Equalize": lambda picture, share, sign: F.equalize(picture),
    "ShearX": lambda picture, share, sign: _shear(picture, sign * share * 0.3, 0.0),
    "ShearY": lambda picture, share, sign: _shear(picture, 0.0, sign * share * 0.3),
    "TranslateX": lambda picture, share, sign: _translate(picture, sign * int(share * 10), 0),
    "TranslateY": lambda picture, share, sign: _translate(picture, 0, sign * int(share * 10)),
    "Rotate": lambda picture, share, sign: _rotate(picture, sign * share * 30),
}
