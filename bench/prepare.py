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

# Notations a picture in the archive; the original's split lists have 4.03 captions a picture.
NOTATIONS = (1, 2, 2, 3, 3, 4, 4, 5, 6, 11)


def synthetic(records: int, seed: int = 0) -> dict[str, list[str]]:
    """Records of real notations: most plain, some with keys, names or colons, few unknown."""
    rng = random.Random(seed)
    source = iconclass.init().source
    source.load("en")
    known = [n for n in source.texts["en"] if source._D.get(n) and "(...)" not in n]
    popular = rng.sample(known, 400)

    def one() -> str:
        notation = rng.choice(popular if rng.random() < 0.6 else known)
        shape = rng.random()
        keys = source._D[notation].get("k", {}).get("s", [])
        if shape < 0.15 and keys:
            return f"{notation}(+{rng.choice(keys)})"
        if shape < 0.20:
            return f"61B2(PERSON {rng.randrange(20_000)})"
        if shape < 0.23:
            return f"{notation}:{rng.choice(popular)}"
        return notation + "9999" if shape < 0.24 else notation

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
