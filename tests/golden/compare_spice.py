"""Compares our SPICE with the thousands of stored counts of pycocoevalcap's, picture by picture.

    python tests/golden/compare_spice.py REFS.json --parses new.sqlite     (half an hour, then none)

REFS.json are the Iconclass references that make_spice.py was given; without them COCO alone is
compared. A new file of parses makes sure that every text is parsed here and now.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from blip_art.score.engine import Engine  # noqa: E402
from blip_art.score.scoring import score_with  # noqa: E402
from tests.score_data import MANY_PICTURES, art_pairs, coco_pairs  # noqa: E402

GOLDEN = Path(__file__).with_name("spice_many.json.gz")


def main() -> int:
    """Print how many pictures agree; 1 if not all do."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("references", type=Path, nargs="?", metavar="REFS.json")
    parser.add_argument("--parses", type=Path, metavar="FILE")
    options = parser.parse_args()
    golden = json.loads(gzip.decompress(GOLDEN.read_bytes()))
    sets = {"coco": coco_pairs(MANY_PICTURES)}
    if options.references:
        sets["art"] = art_pairs(options.references)
    wrong = 0
    with Engine(parses=options.parses) as engine:
        for name, pairs in sets.items():
            scores = score_with(engine, {key: texts for key, (_, texts) in pairs.items()},
                                {key: caption for key, (caption, _) in pairs.items()}, ["spice"])
            if scores.failed:
                print(f"{name}: {scores.failed['spice']}")
                return 1
            stored = {key: dict(zip(golden["categories"], zip(*[iter(row)] * 3, strict=True),
                                    strict=True)) for key, row in golden[name].items()}
            other = [key for key, counts in scores.spice_counts.items()
                     if {kind: tuple(row) for kind, row in counts.items()} != stored.get(key)]
            wrong += len(other) + abs(len(stored) - len(pairs))
            print(f"{name}: {len(pairs) - len(other)} of {len(stored)} pictures have equal counts "
                  f"in all categories; {scores.parsed}; other: {other[:20]}", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
