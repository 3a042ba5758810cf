"""Two rows to read every score between: one caption for all pictures, and a cut reference.

    captions = floor_captions(references, most_frequent_caption("annotation/iconclassTrain.json"))
    captions = oracle_captions(references, token_limit(run, config))
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterable, Mapping, Optional, Sequence

from blip_art.config import Config
from blip_art.data.datasets import load_pairs
from blip_art.files import PathLike, RunDir, read_json
from blip_art.manifest import started_in
from blip_art.score.coco import cleaned, read_references
from blip_art.score.limits import Limit


def most_frequent_caption(path: PathLike) -> str:
    """The caption that most training pairs have; of equals the first.

    Args:
        path: pairs of image and caption (JSON, JSONL, CSV, Karpathy's COCO), COCO ground truth,
            or a list of {image_id, caption}.

    Raises:
        UserError: no such file, or none of these.
    """
    times = Counter(_training_captions(Path(path)))
    # It is printed and written down: half a character cannot be.
    return cleaned(times.most_common(1)[0][0])


def floor_captions(references: Mapping[str, Sequence[str]], caption: str) -> Dict[str, str]:
    """What a model that has not looked at the pictures can say: always the same."""
    return dict.fromkeys(references, caption)


def oracle_captions(references: Mapping[str, Sequence[str]], limit: Limit) -> Dict[str, str]:
    """The best that the limit on captions leaves: each picture's first reference, cut."""
    return dict(zip(references, limit.cut([texts[0] for texts in references.values()])))


def training_list(run: RunDir, config: Config) -> Optional[Path]:
    """The run's training pairs, wherever scoring is started from; None when they are gone."""
    name = Path(config.data.annotations, config.data.train)
    return next((path for path in (started_in(run) / name, name) if path.exists()), None)


def _training_captions(path: Path) -> Iterable[str]:
    if path.suffix == ".json" and _has_no_pictures(read_json(path)):
        return [text for texts in read_references(path).values() for text in texts]
    return [text for pair in load_pairs(path, "train") for text in pair.captions]


def _has_no_pictures(data: Any) -> bool:
    """Whether the captions come with the pictures' ids alone."""
    if isinstance(data, dict):
        return isinstance(data.get("annotations"), list)
    return (isinstance(data, list) and bool(data) and isinstance(data[0], dict)
            and "image" not in data[0])
