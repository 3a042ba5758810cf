"""A site profile: all that is particular to one cluster, in one YAML file.

    site = load_site("configs/sites/v100.yaml")    # or $BLIP_ART_SITE
"""

from __future__ import annotations

import dataclasses
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple

from blip_art.errors import UserError, quoted
from blip_art.schema import SWITCHES, build, check_limits, limited, refuse
from blip_art.strict_yaml import read_yaml

ENVIRONMENT = "BLIP_ART_SITE"
# Of sbatch's options, the one that has such a word for its value.
_YES_OR_NO = ("kill-on-invalid-dep",)
_RUNTIME = re.compile("apptainer|singularity")


@dataclass(frozen=True)
class Site:
    """One cluster. Paths may hold ~ and $VARIABLES; relative ones start at the profile's folder."""

    name: str = ""
    """What the cluster is called; the file's name if it is not said."""
    path: str = ""
    """The profile itself; filled in when it is loaded."""
    partition: str = ""
    """Partition of GPU jobs; 'a,b' is whichever starts first, '' the cluster's default."""
    cpu_partition: str = ""
    """Partition of scoring and reports, which need no GPU; '' is `partition`."""
    account: str = ""
    """Account that is charged; '' is yours by default."""
    qos: str = ""
    """Quality of service."""
    gres: str = "gpu:v100:{gpus}"
    """How GPUs are asked for; {gpus} is their number on each node. '' asks for none."""
    gpus_per_node: int = limited(4, min=1, max=1000)
    """GPUs of a node, all of which a job uses unless --gpus says less."""
    device: str = limited("cuda", choices=("cuda", "cpu"))
    """What GPU jobs compute on: a job that finds no GPU ends. 'cpu' where GPUs are only names to
    the scheduler, as in tests."""
    layout: str = limited("node", choices=("node", "gpu"))
    """'node': one task a node, torchrun starts the ranks. 'gpu': one task a GPU."""
    cpus_per_gpu: int = limited(8, min=1, max=10_000)
    """CPU cores for each rank."""
    mem_gb: int = limited(0, min=0, max=10**6)
    """Memory of a GPU job on each node; 0 is the partition's default."""
    cpu_cpus: int = limited(8, min=1, max=10_000)
    """CPU cores of a scoring job."""
    cpu_mem_gb: int = limited(16, min=0, max=10**6)
    """Memory of a scoring job; Java's heap and the parser's charts come out of it."""
    follow_cpus: int = limited(2, min=1, max=10_000)
    """CPU cores of the job that scores beside a training, mostly asleep: its first epoch, with all
    references, takes 10 minutes of one core for 8,653 pictures. At most `cpu_cpus` are asked."""
    follow_mem_gb: int = limited(4, min=0, max=10**6)
    """Its memory."""
    time_min: int = limited(24 * 60, min=1, max=10**6)
    """Time limit of a GPU job. A training that needs more is queued again and goes on."""
    cpu_time_min: int = limited(24 * 60, min=1, max=10**6)
    """Time limit of a scoring job."""
    signal_delay_s: int = limited(120, min=0, max=10**6)
    """How long before the time limit a job is told to save."""
    max_requeues: int = limited(20, min=0, max=10**6)
    """How often one job may be queued again; a training only while its starts give new checkpoints
    or captions (see slurm/job.sh)."""
    sbatch: Mapping[str, Any] = field(default_factory=dict)
    """Further options of GPU jobs, as sbatch calls them: {constraint: v100-32g, exclusive: true};
    true is an option without a value."""
    cpu_sbatch: Mapping[str, Any] = field(default_factory=dict)
    """The same for scoring jobs."""
    container: str = limited("apptainer", path=True)
    """apptainer, singularity or a path; '' runs `python` as it is, without an image."""
    image: str = limited("../../blip_art.sif", path=True)
    """The image ('launch.py image build')."""
    overlay: str = limited("../../overlay.img", path=True)
    """The overlay that has the scorers ('launch.py overlay build'); '' for none."""
    python: str = limited("/ext3/venv/bin/python", path=True)
    """Interpreter of the jobs, as the container sees it."""
    cache: str = limited("/ext3/cache", path=True)
    """Where CoreNLP is, as the container sees it."""
    parses: str = limited("../../.cache/blip_art/parses.sqlite", path=True)
    """What SPICE has parsed, for all runs; on a file system that all nodes see."""
    scratch: str = limited("/tmp", path=True)
    """Folder on the node for temporary files; $TMPDIR or $SLURM_JOB_ID in it are the node's. A job
    has a folder of its own in there, which is removed at its end."""
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
    purge_days: int = limited(0, min=0, max=10**6)
    """After how many days the site deletes unused files; 0 is never."""
    purged: str = limited("", path=True)
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
    values = read_yaml(path, "site profile", "configs/sites/v100.yaml is an example")
    here = Path(path).resolve()
    if "path" in values:
        raise UserError(f"{path}: 'path' is not set: it is the profile itself")
    site = build(Site, {"name": here.stem, **values, "path": str(here)}, path)
    site = dataclasses.replace(site, sbatch=_options(site.sbatch, f"{path}: sbatch"),
                               cpu_sbatch=_options(site.cpu_sbatch, f"{path}: cpu_sbatch"))
    check_site(site)
    return dataclasses.replace(
        site, scratch=os.path.expanduser(site.scratch), image=_absolute(site.image, here.parent),
        overlay=_absolute(site.overlay, here.parent), parses=_absolute(site.parses, here.parent),
        binds=_expanded(site.binds), build_binds=_expanded(site.build_binds))


def _options(options: Mapping[str, Any], where: str) -> Dict[str, Any]:
    """Options without a value are switched by true or false, yes or no, on or off."""
    options = {key: SWITCHES.get(value, value) if isinstance(value, str) and key not in _YES_OR_NO
               else value for key, value in options.items()}
    for key, value in options.items():
        if isinstance(value, (dict, list)):
            raise UserError(f"{where}.{key} must be text, a number or true, not {quoted(value)}")
    return {key: value if value is True else str(value) for key, value in options.items()
            if value is not None and value is not False}


def check_site(site: Site) -> None:
    """Refuse values out of their limits, or that do not go together.

    Raises:
        UserError: names the key and the rule.
    """
    def need(ok: bool, key: str, rule: str) -> None:
        if not ok:
            refuse(site.path, key, rule, getattr(site, key))

    check_limits(site, site.path)
    need(not site.container or "/" in site.container or bool(_RUNTIME.match(site.container)),
         "container", "apptainer, singularity, a path, or '' to run without an image")
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
