"""Four captions whose scores are known: whoever computes them has a whole scorer, Java and all.

    python -m blip_art.cluster.golden FOLDER      scores them there; FOLDER is for what is written
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, List, Mapping, Tuple

from blip_art.errors import UserError, exit_cleanly
from blip_art.files import read_json, write_json

# Captions of our own; the scores are those of pycocoevalcap 1.2 and CoreNLP 3.6.0.
_CAPTIONS: Dict[str, Tuple[str, List[str]]] = {
    "1": ("a woman holding a child on her lap",
          ["a woman with a child on her lap", "the virgin mary holding the christ child"]),
    "2": ("two men fighting with swords",
          ["two soldiers fight with swords", "men with swords in a battle"]),
    "3": ("a landscape with a ruined castle near a river",
          ["a river landscape with ruins", "a castle on a hill beside a river"]),
    "4": ("an old man reading a large book",
          ["an old man reads a book by a window", "a scholar with a large book"]),
}
_METRICS = {"Bleu_1": 0.862069, "Bleu_2": 0.643268, "Bleu_3": 0.461861, "Bleu_4": 0.328117,
            "METEOR": 0.373714, "ROUGE_L": 0.652738, "CIDEr": 2.398839, "SPICE": 0.432418}
_TOLERANCE = 2e-6


def write_golden(folder: Path) -> Tuple[Path, Path]:
    """Write references and captions as COCO's files; their paths."""
    references, results = folder / "golden_references.json", folder / "golden_results.json"
    rows = [{"id": f"{key} {number}", "image_id": key, "caption": text}
            for key, (_, texts) in _CAPTIONS.items() for number, text in enumerate(texts)]
    write_json(references, {"images": [{"id": key} for key in _CAPTIONS], "annotations": rows})
    write_json(results, [{"image_id": key, "caption": text}
                         for key, (text, _) in _CAPTIONS.items()])
    return references, results


def golden_mistakes(scores: Mapping[str, Any]) -> List[str]:
    """What differs from the known scores, one line each; `scores` as `blip_art.score --json`."""
    found = scores["metrics"]
    return [f"{name} is {found.get(name)} instead of {value:.6f}"
            for name, value in _METRICS.items()
            if not abs(found.get(name, -1.0) - value) <= _TOLERANCE]  # NaN is a mistake too


def main() -> int:
    """Score with this interpreter; say whether the scores are the known ones."""
    if len(sys.argv) != 2:
        raise UserError("python -m blip_art.cluster.golden FOLDER")
    folder = Path(sys.argv[1])
    references, results = write_golden(folder)
    scores = folder / "golden_scores.json"
    done = subprocess.run(
        [sys.executable, "-m", "blip_art.score", str(references), str(results), "--json",
         str(scores)], stdout=subprocess.DEVNULL, check=False,
        # Parses of before would hide a parser that does not work.
        env={**os.environ, "BLIP_ART_PARSES": str(folder / "golden_parses.sqlite")})
    if done.returncode:
        return done.returncode
    mistakes = golden_mistakes(read_json(scores))
    if mistakes:
        raise UserError(f"the scorer computes other scores than pycocoevalcap: "
                        f"{'; '.join(mistakes)}")
    print(f"the scorer works: {len(_METRICS)} known scores computed")
    return 0


if __name__ == "__main__":
    exit_cleanly(main)
