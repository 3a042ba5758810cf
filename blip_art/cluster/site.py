"""A site profile: all that is particular to one cluster, in one YAML file.

    site = load_site("configs/sites/v100.yaml")    # or $BLIP_ART_SITE
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

import yaml

from blip_art.errors import UserError

ENVIRONMENT = "BLIP_ART_SITE"
LAYOUTS, DEVICES = ("node", "gpu"), ("cuda", "cpu")


@dataclass(frozen=True)
class Site:
    """One cluster. Paths may hold ~ and $VARIABLES; relative ones start at the profile's folder."""

    name: str = ""
    """What the cluster is called; the file's name if it is not said."""
    path: str = ""
    """The profile itself; filled in when it is loaded."""
    partition: str = ""
    """Partition of GPU jobs; '' is the cluster's default."""
    cpu_partition: str = ""
    """Partition of scoring and reports, which need no GPU; '' is `partition`."""
    account: str = ""
    """Account that is charged; '' is yours by default."""
    qos: str = ""
    """Quality of service."""
    gres: str = "gpu:v100:{gpus}"
    """How GPUs are asked for; {gpus} is their number on each node. '' asks for none."""
    gpus_per_node: int = 4
    """GPUs of a node, all of which a job uses unless --gpus says less."""
    device: str = "cuda"
    """What GPU jobs compute on: a job that finds no GPU ends. 'cpu' where GPUs are only names to
    the scheduler, as in tests."""
    layout: str = "node"
    """'node': one task a node, torchrun starts the ranks. 'gpu': one task a GPU."""
    cpus_per_gpu: int = 8
    """CPU cores for each rank."""
    mem_gb: int = 0
    """Memory of a GPU job on each node; 0 is the partition's default."""
    cpu_cpus: int = 8
    """CPU cores of a scoring job."""
    cpu_mem_gb: int = 16
    """Memory of a scoring job; Java's heap and the parser's charts come out of it."""
    time_min: int = 24 * 60
    """Time limit of a GPU job. A training that needs more is queued again and goes on."""
    cpu_time_min: int = 24 * 60
    """Time limit of a scoring job."""
    signal_delay_s: int = 120
    """How long before the time limit a job is told to save."""
    max_requeues: int = 20
    """How often one job may be queued again."""
    sbatch: Mapping[str, Any] = field(default_factory=dict)
    """Further options of GPU jobs, as sbatch calls them: {constraint: v100-32g, exclusive: true};
    true is an option without a value."""
    cpu_sbatch: Mapping[str, Any] = field(default_factory=dict)
    """The same for scoring jobs."""
    container: str = "apptainer"
    """apptainer, singularity or a path; '' runs `python` as it is, without an image."""
    image: str = "../../blip_art.sif"
    """The image ('launch.py image build')."""
    overlay: str = "../../overlay.img"
    """The overlay that has the scorers ('launch.py overlay build'); '' for none."""
    python: str = "/ext3/venv/bin/python"
    """Interpreter of the jobs, as the container sees it."""
    cache: str = "/ext3/cache"
    """Where CoreNLP is, as the container sees it."""
    parses: str = "../../.cache/blip_art/parses.sqlite"
    """What SPICE has parsed, for all runs; on a file system that all nodes see."""
    scratch: str = "/tmp"
    """Folder on the node for temporary files; $TMPDIR or $SLURM_JOB_ID in it are the node's."""
    binds: Tuple[str, ...] = ()
    """Folders the image must see beside the working directory: source[:target[:ro]]."""
    modules: Tuple[str, ...] = ()
    """Environment modules to load on the node, for example apptainer/1.4."""
    setup: Tuple[str, ...] = ()
    """Shell lines for the node, before the container starts: proxies, ulimits."""
    base: str = ""
    """Base of the image, if not the one singularity/blip_art.def names."""
    build_binds: Tuple[str, ...] = ()
    """Folders and files that building needs: CA certificates, pip.conf."""
    build_setup: Mapping[str, str] = field(default_factory=dict)
    """Environment of building: https_proxy and the like."""
    has_sacct: bool = True
    """Whether the cluster keeps accounts (slurmdbd)."""
    has_internet: bool = False
    """Whether compute nodes reach the internet."""
    purge_days: int = 0
    """After how many days the site deletes unused files; 0 is never."""
    purged: str = ""
    """A folder on the file system where it does that, such as /scratch; '' is that of `scratch`."""


def load_site(path: str = "", environ: Optional[Mapping[str, str]] = None) -> Site:
    """Read a profile.

    Args:
        path: the YAML file; '' takes $BLIP_ART_SITE.

    Raises:
        UserError: no profile was named, or it cannot be read; an unknown key (names the nearest);
            a value of the wrong type.
    """
    path = path or (os.environ if environ is None else environ).get(ENVIRONMENT, "")
    if not path:
        raise UserError("no site profile: copy configs/sites/v100.yaml, put your cluster's names "
                        f"in, and pass --site FILE or set {ENVIRONMENT}")
    values = _read(Path(path))
    hints = {one.name: one for one in dataclasses.fields(Site) if one.name != "path"}
    for key in values:
        if key not in hints:
            close = difflib.get_close_matches(str(key), hints, 1)
            raise UserError(f"{path}: unknown key '{key}'; " + (
                f"did you mean '{close[0]}'?" if close else f"valid keys: {', '.join(hints)}"))
    typed = {key: _typed(getattr(Site(), key), value, f"{path}: {key}")
             for key, value in values.items()}
    here = Path(path).resolve()
    site = Site(**{"name": here.stem, **typed, "path": str(here)})
    check_site(site)
    return dataclasses.replace(
        site, scratch=os.path.expanduser(site.scratch), image=_absolute(site.image, here.parent),
        overlay=_absolute(site.overlay, here.parent), parses=_absolute(site.parses, here.parent),
        binds=_expanded(site.binds), build_binds=_expanded(site.build_binds))


def _read(path: Path) -> Dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read site profile {path}: {error.strerror}; "
                        "configs/sites/v100.yaml is an example") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise UserError(f"{path}: not valid YAML ({problem})") from error
    if values is not None and not isinstance(values, dict):
        raise UserError(f"{path} must hold 'key: value' lines, not {type(values).__name__}")
    return values or {}


def _typed(default: Any, value: Any, where: str) -> Any:
    """`value` as the type of the field's default."""
    if isinstance(default, tuple):
        return tuple(str(item) for item in (value if isinstance(value, list) else [value])
                     if item is not None)
    if isinstance(default, dict) and isinstance(value, dict):
        # An option without a value is switched by true or false.
        return {str(key): item if item is True else str(item) for key, item in value.items()
                if item is not None and item is not False}
    if isinstance(default, str) and (value is None or isinstance(value, (int, float))):
        return "" if value is None else str(value)
    if type(value) is not type(default):
        kind = {int: "a whole number", bool: "true or false", str: "text",
                dict: "a section of keys"}[type(default)]
        raise UserError(f"{where} must be {kind}, not {value!r}")
    return value


def check_site(site: Site) -> None:
    """Refuse values that do not go together.

    Raises:
        UserError: names the key and the rule.
    """
    def need(ok: bool, key: str, rule: str) -> None:
        if not ok:
            raise UserError(f"{site.path}: {key} must be {rule}, not {getattr(site, key)!r}")

    need(site.layout in LAYOUTS, "layout", "node or gpu")
    need(site.device in DEVICES, "device", "cuda or cpu")
    for key in ("gpus_per_node", "cpus_per_gpu", "cpu_cpus", "time_min", "cpu_time_min"):
        need(getattr(site, key) > 0, key, "above 0")
    for key in ("mem_gb", "max_requeues", "purge_days"):
        need(getattr(site, key) >= 0, key, "0 or more")
    need(site.signal_delay_s < 60 * min(site.time_min, site.cpu_time_min), "signal_delay_s",
         "less than the time limits, or jobs would be told to save as they start")
    need(not site.overlay.endswith((":rw", ":ro")), "overlay",
         "a path without ':rw' or ':ro': jobs only read it, or they would lock each other out")
    for key in ("sbatch", "cpu_sbatch"):
        need(not any(word.startswith("-") for word in getattr(site, key)), key,
             "keys without dashes")


def _absolute(path: str, start: Path) -> str:
    if not path:
        return ""
    [expanded] = _expanded((path,))
    return os.path.normpath(os.path.join(start, expanded))


def _expanded(paths: Tuple[str, ...]) -> Tuple[str, ...]:
    return tuple(os.path.expanduser(os.path.expandvars(path)) for path in paths)
