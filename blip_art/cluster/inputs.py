"""What jobs read: looked for before they wait in a queue for it, and bound into the container.

    check_inputs(inputs_of(load_config("configs/caption_art.yaml")), site)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Tuple

from blip_art.cluster.site import Site
from blip_art.config import Config
from blip_art.errors import UserError

_FILES = (".pth", ".safetensors", ".bin", ".pt")


def inputs_of(config: Config, splits: Sequence[str] = (), weights: bool = True) -> Dict[str, Path]:
    """Lists, pictures, vocabulary and weights by the keys that name them; hub names are none.

    Args:
        splits: those that are read; () is all that training reads.
        weights: whether model.pretrained is read: a training that goes on has weights of its own.
    """
    data, model = config.data, config.model
    found = {f"data.{split}": Path(data.annotations, getattr(data, split))
             for split in splits or ("train", *config.generate.splits)}
    found["data.images"] = Path(data.images)
    for key in ("tokenizer", "pretrained") if weights else ("tokenizer",):
        name = getattr(model, key)
        if name and (Path(name).expanduser().exists() or _is_path(name)):
            found[f"model.{key}"] = Path(name).expanduser()
    return found


def _is_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name.endswith(_FILES)


def check_inputs(inputs: Dict[str, Path], site: Site) -> None:
    """All of them are here, or where the profile binds something.

    Raises:
        UserError: one is not, by the key that names it.
    """
    for key, path in inputs.items():
        if not path.exists() and not _is_bound(path, site):
            raise UserError(f"no {path} here ({key}); fix the path, or say in {site.path} "
                            "where nodes have it: binds: [SOURCE:TARGET]")


def folders_of(paths: Iterable[Path], site: Site) -> List[Path]:
    """Folders of what is here, which the container must see as well."""
    return [_folder(path) for path in dict.fromkeys(paths)
            if path.exists() and not _is_bound(path, site)]


def _folder(path: Path) -> Path:
    path = path.resolve()
    return path if path.is_dir() else path.parent


def _is_bound(path: Path, site: Site) -> bool:
    """Whether the profile puts something in its place on the nodes."""
    absolute = Path(os.path.abspath(path))
    return any(target in (absolute, *absolute.parents) for target in map(_target, site.binds))


def _target(bind: str) -> Path:
    source, _, rest = bind.partition(":")
    return Path(rest.split(":")[0] or source)


def bindable(folders: Sequence[Path], cwd: Path) -> List[str]:
    """Each folder once, without what others or the working directory hold.

    Raises:
        UserError: a name that the container's list of folders cannot hold.
    """
    held: Tuple[Path, ...] = (cwd,)
    for folder in sorted(set(folders)):  # what holds others comes first
        if not any(one in (folder, *folder.parents) for one in held):
            held += (folder,)
    for folder in held[1:]:
        if set(str(folder)) & set(",:"):
            raise UserError(f"{folder} has a comma or a colon in its name, at which containers "
                            "split the list of their folders; rename it, or work below it")
    return [str(folder) for folder in held[1:]]
