"""Seconds to make annotations of as many records as the real archive has, without pictures.

    python bench/prepare.py --records 87749
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import iconclass

from blip_art.data.archive import open_archive
from blip_art.data.captions import Style
from blip_art.data.prepare import Options, prepare

RARITY = 14
# Notations a picture in the archive; the original's split lists have 4.03 captions a picture.
NOTATIONS = (1, 2, 2, 3, 3, 4, 4, 5, 6, 11)


def synthetic(records: int, seed: int = 0) -> dict[str, list[str]]:
    """Records of real notations: most plain, some with keys, names or colons, few unknown."""
    rng = random.Random(seed)
    source = iconclass.init().source
    source.load("en")
    known = [n for n in source.texts["en"] if source._D.get(n) and "(...)" not in n]
    rng.shuffle(known)

    def one() -> str:
        # Few notations are common: so drawn, 8,653 pictures have about 9,000 different ones. The
        # original's 8,653 validation captions have 7,320 different pieces, without keys and names.
        notation = known[int(len(known) * rng.random() ** RARITY)]
        shape = rng.random()
        keys = source._D[notation].get("k", {}).get("s", [])
        if shape < 0.15 and keys:
            return f"{notation}(+{rng.choice(keys[:5])})"
        if shape < 0.18:
            return f"61B2(PERSON {int(10_000 * rng.random() ** RARITY)})"
        if shape < 0.21:
            return f"{notation}:{known[int(len(known) * rng.random() ** RARITY)]}"
        return notation + "9999" if shape < 0.22 else notation

    return {f"IIHIM_{number}.jpg": [one() for _ in range(rng.choice(NOTATIONS))]
            for number in range(records)}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--records", type=int, default=87_749)
    records = synthetic(parser.parse_args().records)
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data.json")
        data.write_text(json.dumps(records))
        for style in ("clean", "seed"):
            for split in ("random", "grouped"):
                start, cpu = time.perf_counter(), time.process_time()
                archive = open_archive(data, pictures=False)
                manifest = prepare(archive, Path(folder, style),
                                   Options(split=split, style=Style(style), check=False))
                print(f"{style:<6}{split:<8} {time.perf_counter() - start:5.1f} s "
                      f"({time.process_time() - cpu:.1f} s of one core)  "
                      f"{manifest['records']:,} records, {manifest['notations']:,} notations, "
                      f"{manifest['pictures']}")


if __name__ == "__main__":
    main()
