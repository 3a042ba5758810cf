"""Data sets for torch's DataLoader whose samples depend on (seed, epoch, index) alone.

    TrainDataset(pairs, "Dataset", 384, "a picture of ", 30, seed=42)[epoch, index]
"""

from __future__ import annotations

import functools
import hashlib
import sys
from typing import List, Sequence, Set, Tuple

import torch
from PIL import Image
from torch.utils.data import Dataset

from blip_art.data.captions import pre_caption
from blip_art.data.datasets import Pair
from blip_art.data.pictures import find_picture, read_picture
from blip_art.data.transforms import EvalTransform, TrainTransform, smallest_side
from blip_art.errors import UserError
from blip_art.files import PathLike

# So many bad ones in a row are no bad pictures, but a folder that is gone.
_MOST_SKIPPED = 20


class TrainDataset(Dataset[Tuple[torch.Tensor, str]]):
    """Augmented pictures with one caption each; a picture with several comes several times."""

    def __init__(self, pairs: Sequence[Pair], images_root: PathLike, image_size: int,
                 prompt: str = "", max_words: int = 30, seed: int = 42,
                 skip_bad: bool = False) -> None:
        self.samples: List[Tuple[str, str]] = [
            (pair.image, prompt + pre_caption(caption, max_words))
            for pair in pairs for caption in pair.captions]
        self.images_root, self.seed, self.skip_bad = images_root, seed, skip_bad
        self.transform = TrainTransform(image_size)
        self.smallest_side = smallest_side(image_size)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Tuple[int, int]) -> Tuple[torch.Tensor, str]:
        """The sample `index` as it is in `epoch`: bytes (3, S, S), caption."""
        epoch, index = key
        picture, caption = self._read(index)
        # Only the CPU generator: torch.manual_seed would reseed the GPUs' dropout as well.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(sample_seed(self.seed, epoch, index))
            return self.transform(picture), caption

    def _read(self, index: int) -> Tuple[Image.Image, str]:
        """The picture and caption of a pair; with `skip_bad`, of the next pair that can be read.

        To leave a pair out would move all others to other batches. A neighbour in its place
        depends on nothing but the pictures: a resumed run sees the same.
        """
        tried: Set[str] = set()  # split lists name a picture once for each of its phrases
        for step in range(len(self.samples)):
            image, caption = self.samples[(index + step) % len(self.samples)]
            if image in tried:
                continue
            tried.add(image)
            try:
                path = find_picture(self.images_root, image)
                return read_picture(path, self.smallest_side), caption
            except UserError as error:
                failed = error
                if not self.skip_bad or len(tried) == _MOST_SKIPPED:
                    break
                _say_once(f"{error}; until then the next pair takes its place")
        raise failed


@functools.cache
def _say_once(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


class PictureDataset(Dataset[Tuple[int, torch.Tensor]]):
    """Whole pictures with their position, for captioning."""

    def __init__(self, images: Sequence[str], images_root: PathLike, image_size: int) -> None:
        self.images, self.images_root = list(images), images_root
        self.transform = EvalTransform(image_size)
        self.smallest_side = smallest_side(image_size)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, position: int) -> Tuple[int, torch.Tensor]:
        """(position, bytes (3, S, S))."""
        picture = read_picture(find_picture(self.images_root, self.images[position]),
                               self.smallest_side, draft=False)
        return position, self.transform(picture)


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """A seed that neighbours in epoch or index do not share any bits of."""
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
