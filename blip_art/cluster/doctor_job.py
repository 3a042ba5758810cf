"""What doctor's job looks at on a node, as each of its ranks, inside the container.

    torchrun --nproc_per_node=4 -m blip_art.cluster.doctor_job --folder runs/.doctor/slurm

Each rank writes rank_N.json: what it found, then whether a signal reached it. `launch.py doctor
--job` starts it, sends the signal and shows what is there.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Iterable, List, Optional

from blip_art.cluster.checks import Check, fail, guarded, ok, warn
from blip_art.errors import EXIT_FAILED
from blip_art.files import write_json

SCORING_LIMIT_S = 180
SIGNAL_LIMIT_S, LOOK_S = 90.0, .1
ARCHITECTURE = "sm_70"
# A host that `launch.py fetch` needs too.
INTERNET = ("iconclass.org", 443)


def main(argv: Optional[List[str]] = None) -> int:
    """Look, write, wait for the signal, write."""
    parser = argparse.ArgumentParser(prog="python -m blip_art.cluster.doctor_job",
                                     description=__doc__.split("\n")[0])
    parser.add_argument("--folder", required=True, help="where rank_N.json go")
    parser.add_argument("--cpus", type=int, default=0, help="CPUs that a task asked for")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs that a node's tasks asked for")
    parser.add_argument("--internet", action="store_true", help="the profile says there is")
    args = parser.parse_args(argv)
    rank = int(os.environ.get("RANK", "0"))
    report = Path(args.folder, f"rank_{rank}.json")
    found: List[Check] = []
    if rank == 0:
        for check in (place, wrapper, affinity, memory, scratch, internet, score):
            found += guarded(check, args)
            _write(report, found, "looking")
    found += guarded(kernels, args)
    try:
        from blip_art.distributed import Stop, process_group
    except ImportError as error:
        _write(report, [*found, fail(f"no training here: {error}", "build the image again")],
               "done")
        return EXIT_FAILED
    os.environ.pop("BLIP_ART_DEVICE", None)  # that no GPU is there has been told
    with Stop() as stop:
        _write(report, found, "joining the other ranks")
        with process_group() as world:
            found += ranks(world)
            _write(report, found, "waiting for the signal")
            found += signalled(agreed_signal(stop, world))
    _write(report, found, "done")
    return 0


def agreed_signal(stop: Any, world: Any) -> int:
    """The signal that any rank got, on all of them, as training agrees to save; 0 for none."""
    for _ in range(int(SIGNAL_LIMIT_S / LOOK_S)):  # equally often on every rank
        number = int(world.most(stop.signal or 0))
        if number:
            return number
        time.sleep(LOOK_S)
    return 0


def signalled(number: int) -> Iterable[Check]:
    """The signal came to Python, and left it what it needs to save."""
    if not number:
        yield fail(f"no signal in {SIGNAL_LIMIT_S:.0f} s", "a shell between Slurm and Python "
                   "swallows it: jobs could not save before their time limit")
        return
    yield ok(f"{signal.Signals(number).name} reached Python, all ranks agree")
    time.sleep(1)  # as long as what else it reached may take to end
    try:
        os.listdir(sys.prefix)
        Path(sys.executable).read_bytes()
    except OSError as error:
        yield fail(f"the signal ended the image's file system ({error.strerror})",
                   "jobs must go through singularity/run.sh, which keeps signals from the mounts")


def _write(path: Path, found: List[Check], state: str) -> None:
    write_json(path, {"state": state, "checks": [asdict(check) for check in found]}, indent=1)


def place(args: argparse.Namespace) -> Iterable[Check]:
    """Which node, which image, which Python."""
    environ = os.environ
    image = environ.get("APPTAINER_CONTAINER") or environ.get("SINGULARITY_CONTAINER")
    inside = f"inside {image}" if image else "without a container"
    yield ok(f"on {platform.node()}, {inside}, Python {platform.python_version()} "
             f"({sys.executable})")


def wrapper(args: argparse.Namespace) -> Iterable[Check]:
    """What the wrapper must have set: the user's own packages out, the model hub off."""
    if not os.environ.get("APPTAINER_CONTAINER") and not os.environ.get("SINGULARITY_CONTAINER"):
        return
    missing = [name for name in ("PYTHONNOUSERSITE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
               if os.environ.get(name) != "1"]
    yield ok("the model hub is off, packages in ~/.local are out of sight") if not missing else \
        fail(f"not set: {', '.join(missing)}", "jobs must go through singularity/run.sh")


def affinity(args: argparse.Namespace) -> Iterable[Check]:
    """CPUs this task may use, against those it asked for."""
    mine = len(os.sched_getaffinity(0))
    if mine < args.cpus and mine == os.cpu_count():
        yield warn(f"{args.cpus} CPUs were asked for, the whole node has {mine}",
                   "ranks will share them; Slurm believes there are more")
    elif mine < args.cpus:
        yield fail(f"{mine} CPUs are this task's, {args.cpus} were asked for",
                   "Slurm's srun was not told: see srun's --cpus-per-task in the batch script")
    elif mine > args.cpus:
        yield ok(f"{args.cpus} CPUs asked for; the site does not confine jobs ({mine} in sight)")
    else:
        yield ok(f"{mine} CPUs, as asked for")


def memory(args: argparse.Namespace) -> Iterable[Check]:
    """/dev/shm, through which loader workers hand pictures over, and limits of a login shell."""
    free = shutil.disk_usage("/dev/shm").free / 1e9
    yield ok(f"/dev/shm: {free:.1f} GB free") if free >= 1 else warn(
        f"/dev/shm: {free:.2f} GB free", "loader workers may die: data.num_workers=0")
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < 1024:
        yield warn(f"only {soft} open files are allowed", "setup: [ulimit -n 4096]")


def scratch(args: argparse.Namespace) -> Iterable[Check]:
    """Temporary files land where there is room."""
    folder = Path(tempfile.gettempdir())
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            began = time.monotonic()
            file.write(os.urandom(1 << 24))
            file.flush()
            os.fsync(file.fileno())
            seconds = time.monotonic() - began
    except OSError as error:
        yield fail(f"scratch {folder}: {error.strerror}", "fix 'scratch' in the site profile")
        return
    free = shutil.disk_usage(folder).free / 1e9
    text = f"scratch {folder}: {free:.0f} GB free, {16.8 / max(seconds, 1e-3):.0f} MB/s"
    yield ok(text) if free >= 2 else warn(text, "name another 'scratch' in the site profile")


def internet(args: argparse.Namespace) -> Iterable[Check]:
    """As the profile says, or not."""
    try:
        socket.create_connection(INTERNET, timeout=5).close()
        there = True
    except OSError:
        there = False
    words = f"{'there is' if there else 'no'} internet on the node"
    if there == args.internet:
        yield ok(f"{words}, as the profile says")
    else:
        yield warn(f"{words}; the profile says otherwise",
                   f"has_internet: {str(there).lower()}" + (
                       "" if there else " (a proxy in 'setup' is not asked here)"))


def score(args: argparse.Namespace) -> Iterable[Check]:
    """Java, CoreNLP and the metrics: captions whose scores are known."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "blip_art.cluster.golden", folder]
        # Its own parses: a run's need not be reachable for this.
        environment = {**os.environ, "BLIP_ART_PARSES": str(Path(folder, "parses"))}
        began = time.monotonic()
        try:
            done = subprocess.run(argv, capture_output=True, text=True, check=False,
                                  timeout=SCORING_LIMIT_S, stdin=subprocess.DEVNULL,
                                  env=environment)
        except subprocess.TimeoutExpired:
            yield fail(f"scoring four captions took over {SCORING_LIMIT_S} s",
                       "look at Java: 'launch.py overlay verify'")
            return
    # A notice of the scorer's on stderr is not the result.
    said = done.stdout if not done.returncode else done.stdout + done.stderr
    said = said.strip().split("\n")[-1].replace("error: ", "")
    yield ok(f"{said} ({time.monotonic() - began:.0f} s, with Java's start)") \
        if not done.returncode else fail(f"scoring: {said}", "'launch.py overlay build' puts the "
                                         "scorers and Java into the overlay")


def kernels(args: argparse.Namespace) -> Iterable[Check]:
    """PyTorch, its kernels for the V100, the driver; one real product on this rank's GPU."""
    try:
        import torch
    except ImportError as error:
        yield fail(f"no PyTorch: {error}", "build the image again: 'launch.py image build'")
        return
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    if rank == 0:
        built = str(torch._C._cuda_getArchFlags() or "").split()
        yield ok(f"PyTorch {torch.__version__} has kernels for {ARCHITECTURE}") \
            if ARCHITECTURE in built else warn(
                f"PyTorch {torch.__version__} has no kernels for {ARCHITECTURE} (V100), but for "
                f"{', '.join(built) or 'no GPU'}", "the pins of requirements.txt have them")
    if not torch.cuda.is_available():
        driver = Path("/dev/nvidiactl").exists()
        needed = os.environ.get("BLIP_ART_DEVICE") == "cuda"
        yield (fail if driver or needed else warn)(
            "PyTorch sees no GPU", "the driver is too old for its CUDA, or --nv is missing"
            if driver else "this node has no NVIDIA driver: tell the administrators" if needed
            else "the profile says 'device: cpu': training runs on the CPU")
        return
    seen = torch.cuda.device_count()
    if rank == 0 and args.gpus and seen != args.gpus:
        yield fail(f"{seen} GPUs are in sight, {args.gpus} were asked for",
                   "ask for them by --gres, not by --gpus-per-task")
    device = torch.device("cuda", rank)
    square = torch.ones(256, 256, dtype=torch.half, device=device)
    right = bool((square @ square == 256).all())
    name, major, minor = torch.cuda.get_device_name(device), *torch.cuda.get_device_capability(
        device)
    text = f"GPU {rank}: {name}, sm_{major}{minor}"
    yield ok(text) if right else fail(f"{text} computes wrongly", "tell the administrators")


def ranks(world: Any) -> Iterable[Check]:
    """The ranks find each other, on the CPU (gloo) and on the GPUs (NCCL), as training does."""
    import torch
    import torch.distributed as dist

    began = time.monotonic()
    total = world.sum([1.0])[0]
    ways = ["gloo"]
    if world.size > 1 and world.device.type == "cuda":
        ones = torch.ones(1 << 20, device=world.device)
        dist.all_reduce(ones)
        total = min(total, float(ones.min().item()))
        ways.append("NCCL")
    if world.rank == 0:
        text = (f"{world.size} ranks add up by {' and '.join(ways)} "
                f"({time.monotonic() - began:.2f} s)")
        yield ok(text) if total == world.size else fail(
            f"{text}, wrongly: {total}", "look at NCCL_DEBUG=INFO in 'setup'")


if __name__ == "__main__":
    from blip_art.errors import exit_cleanly

    exit_cleanly(main)
