"""What jobs need from the internet, brought to the login node: compute nodes often have none.

    ./launch.py fetch      ./launch.py fetch tokenizer --from /media/stick --to .

Files land where the configurations look for them: in the folder launch.py is called in.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from blip_art.cluster.download import Remote, download
from blip_art.errors import UserError
from blip_art.score import corenlp

_BLIP = "https://storage.googleapis.com/sfr-vision-language-research/BLIP/models"
_DRIVE = "https://drive.usercontent.google.com/download?export=download&confirm=t&id="
_HUB = "https://huggingface.co"
ARCHIVE = "779ba2ca9e977c58d818e3823a676973.zip"
WEIGHTS = "model_base_caption_capfilt_large.pth"
TOKENIZER = "bert-base-uncased"


@dataclass(frozen=True)
class Source:
    """One file: what it is, where it comes from, where it goes."""

    remote: Remote
    address: str
    folder: str = ""
    """Below --to."""


# The vocabulary decides the token ids; lower case and the rest are the tokenizer's defaults.
SOURCES: Dict[str, Source] = {
    "archive": Source(Remote(ARCHIVE, md5=ARCHIVE.partition(".")[0]),
                      f"https://iconclass.org/testset/{ARCHIVE}"),
    "weights": Source(Remote(WEIGHTS), f"{_BLIP}/{WEIGHTS}"),
    "weights-large": Source(Remote("model_large_caption.pth"), f"{_BLIP}/model_large_caption.pth"),
    "weights-vqa": Source(Remote("model_base_vqa_capfilt_large.pth"),
                          f"{_BLIP}/model_base_vqa_capfilt_large.pth"),
    "weights-art": Source(Remote("checkpoint_best_art.pth"),
                          f"{_DRIVE}1eRmaea1Y_Acg2CyptWdwOaOj9DxEhKXW"),
    "weights-art-split": Source(Remote("checkpoint_best_art_split.pth"),
                                f"{_DRIVE}1C30JITmSgWemctZLwOXWxWsJ45nPu4Xy"),
    "tokenizer": Source(
        Remote("vocab.txt", "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"),
        f"{_HUB}/{TOKENIZER}/resolve/main/vocab.txt", TOKENIZER),
}
ALL = ("archive", "weights", "tokenizer", "corenlp")
# Runs a command in the image: argv without the interpreter, and where CoreNLP goes.
InImage = Callable[[Sequence[str], Path], int]


def fetch(names: Sequence[str], to: str = "", source: str = "",
          sources: Optional[Dict[str, Source]] = None,
          in_image: Optional[InImage] = None) -> List[Path]:
    """Bring what is named; the paths, in the same order.

    Args:
        names: keys of SOURCES, 'corenlp' or 'all'.
        to: folder; '' is the working directory, for CoreNLP its cache.
        source: a folder, file or address instead of the usual ones.

    Raises:
        UserError: an unknown name, or something that cannot be fetched.
    """
    known = SOURCES if sources is None else sources
    wanted = [one for name in names for one in (ALL if name == "all" else (name,))]
    for name in wanted:
        if name not in known and name != "corenlp":
            raise UserError(f"nothing called '{name}' to fetch; choose from all, corenlp, "
                            f"{', '.join(known)}")
    if len(set(wanted)) > 1 and source and not _is_folder(source):
        raise UserError(f"--from {source} is one file, but {', '.join(wanted)} are asked for; name "
                        "a folder or an address that ends with /, or fetch one at a time")
    paths: List[Path] = []
    for name in dict.fromkeys(wanted):
        paths += (_corenlp(to, source, in_image) if name == "corenlp"
                  else [_one(known[name], to, source)])
    return paths


def _one(what: Source, to: str, source: str) -> Path:
    target = Path(to, what.folder, what.remote.name)
    return download(what.remote, target, places(what, source))


def places(what: Source, source: str = "") -> List[str]:
    """Addresses of a file: its own, or those that --from may mean."""
    if not source:
        hub = os.environ.get("HF_ENDPOINT", "").rstrip("/")
        return [what.address.replace(_HUB, hub) if hub else what.address]
    inside = [f"{source.rstrip('/')}/{part}" for part in dict.fromkeys(
        (what.remote.name, str(Path(what.folder, what.remote.name))))]
    return inside if _is_folder(source) else [source, *(inside if "://" in source else ())]


def _is_folder(source: str) -> bool:
    return source.endswith("/") or ("://" not in source and Path(source).expanduser().is_dir())


def _corenlp(to: str, source: str, in_image: Optional[InImage]) -> List[Path]:
    """By itself where a source is named; the public repository's address is jgo's to know."""
    cache = Path(to) if to else corenlp.cache_folder()
    named = [source] if source else corenlp.sources_from()
    if named or corenlp.jars_if_whole(cache) or _has_jgo():
        return corenlp.fill(cache, named)
    code = (in_image or run_in_image)(("-m", "blip_art.score", "fetch"), cache.absolute())
    if code:
        raise UserError("the image could not fetch CoreNLP, see the lines above; or name a folder "
                        "or mirror that has it with --from")
    return corenlp.find_jars(cache)


def _has_jgo() -> bool:
    import importlib.util

    return importlib.util.find_spec("jgo") is not None


def run_in_image(argv: Sequence[str], cache: Path) -> int:
    """Python of the site's image, which has jgo in its overlay.

    Raises:
        UserError: there is no profile, or no container in it.
    """
    from blip_art.cluster.site import ENVIRONMENT, load_site

    ways = ("name a folder or mirror that has it with --from, or run it with a Python that has jgo "
            "('make setup' installs one)")
    if not os.environ.get(ENVIRONMENT):
        raise UserError(f"CoreNLP: this Python has no jgo, which knows the public repository; "
                        f"{ways}, or set {ENVIRONMENT} to a profile whose overlay is built")
    site = load_site()
    if not site.container or not Path(site.overlay).exists():
        raise UserError(f"CoreNLP: this Python has no jgo, and {site.path} has no overlay that "
                        f"does; {ways}")
    repo = Path(__file__).resolve().parents[2]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="blip_art_fetch_") as scratch:
        environment = {**os.environ, "CONTAINER": site.container, "SIF": site.image,
                       "OVERLAY": site.overlay, "PYTHONPATH": str(repo),
                       "BLIP_ART_SCRATCH": scratch,
                       "BINDS": ",".join([*site.binds, *site.build_binds, str(repo), str(cache)]),
                       "BLIP_ART_CACHE": str(cache), **site.build_setup}
        return subprocess.call([str(repo / "singularity" / "run.sh"), site.python, *argv],
                               env=environment)
