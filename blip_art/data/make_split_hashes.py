"""Make seed_split.bin, the original split's order as hashes, from the list of its file names.

    python -m blip_art.data.make_split_hashes pairs_in_order.json
"""

from __future__ import annotations

import argparse

from blip_art.data.splits import SEED_COUNTS, SEED_ORDER, name_hash
from blip_art.errors import UserError, exit_cleanly
from blip_art.files import read_json, written_aside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", help="JSON list of the 86,530 file names in the original's order")
    names = read_json(parser.parse_args().names)
    hashes = [name_hash(name) for name in names]
    if len(hashes) != sum(SEED_COUNTS) or len(set(hashes)) != len(hashes):
        raise UserError(f"{len(hashes)} names with {len(set(hashes))} different hashes; "
                        f"the original split has {sum(SEED_COUNTS)}")
    with written_aside(SEED_ORDER) as aside:
        aside.write_bytes(b"".join(hashes))
    print(f"{SEED_ORDER}: {len(hashes)} names, {SEED_ORDER.stat().st_size} bytes, no collision")


if __name__ == "__main__":
    exit_cleanly(main)
