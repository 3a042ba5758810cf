"""What tests do with runs on the test cluster: small data, submit, wait, look."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path
from typing import Any

from blip_art.cluster.record import read_jobs
from blip_art.files import RunDir, read_json
from tests.cluster.conftest import Cluster
from tests.mini import write_mini

EPOCHS = 10


class Runs:
    """Trainings of a tiny model in one folder of the user's."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = cluster.home / "work"
        write_mini(self.folder / "mini", train=400, val=7)
        self.own(self.folder)

    def own(self, path: Path) -> None:
        user = self.cluster.user
        subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", path], check=True)

    def launch(self, *words: str | Path, **site: Any) -> subprocess.CompletedProcess[str]:
        """launch.py with --cluster slurm, in the user's folder."""
        named = "_".join(f"{key}-{Path(str(value)).name}" for key, value in site.items())
        profile = self.cluster.write_site(named or "blip", **site)
        return self.cluster.launch(*words, "--cluster", "slurm", "--site", profile,
                                   cwd=self.folder)

    def train(self, name: str, *words: str, scored: bool = False, **site: Any) -> RunDir:
        """Submit a training of EPOCHS epochs on four ranks."""
        done = self.launch(
            "train", "mini/config.yaml", "--run", f"runs/{name}", "train.batch_size=2",
            f"train.epochs={EPOCHS}", "train.save_every_min=0.05", *words,
            *([] if scored else ["--no-score"]), **site)
        assert done.returncode == 0, done.stderr
        return RunDir(self.folder / "runs" / name)

    def job(self, run: RunDir, stage: str = "train") -> str:
        """The id of the newest job of a stage."""
        return next(job.job_id for job in reversed(read_jobs(run)) if job.stage == stage)

    def node(self, run: RunDir) -> str:
        """Where its newest training runs."""
        done = self.cluster.run(["squeue", "-h", "-j", self.job(run), "-o", "%N"])
        return done.stdout.strip()

    def wait(self, run: RunDir, state: str = "finished", timeout: float = 300) -> None:
        self.cluster.wait(lambda: state_of(run) == state, timeout,
                          f"{run.name} to be {state}; {state_of(run)}; {self.said(run)}")

    def wait_for_checkpoint(self, run: RunDir) -> None:
        self.cluster.wait(run.last_checkpoint.exists, 180, f"a checkpoint of {run.name}")

    def wait_until_gone(self, run: RunDir, timeout: float = 300) -> None:
        """Until none of its jobs waits or runs."""
        ids = ",".join(job.job_id for job in read_jobs(run))
        self.cluster.wait(lambda: not self.queue("-j", ids), timeout, f"the end of {ids}")

    def scratch_folders(self, run: RunDir, *folders: Path) -> list[Path]:
        """What its jobs, of no array, have in the nodes' folders for temporary files."""
        names = {f"blip_art-{self.cluster.user.pw_name}-{job.job_id}" for job in read_jobs(run)}
        return [path for folder in folders for path in folder.glob("blip_art-*")
                if path.name.partition(".")[0] in names]

    def queue(self, *words: str) -> list[str]:
        """'ID STATE' of jobs that wait or run."""
        done = self.cluster.run(["squeue", "--noheader", "--array", "--format=%i %T", *words])
        return done.stdout.split("\n")[:-1] if done.returncode == 0 else []

    def said(self, run: RunDir) -> str:
        """All its logs."""
        logs = sorted([*run.slurm.glob("*.log"), *run.slurm.glob("submitit/*.out")])
        return "\n".join(f"== {log.name}\n{log.read_text()}" for log in logs)

    def starts(self, run: RunDir) -> int:
        """How often training started: one log a start."""
        return len(list(run.slurm.glob("train_*.log")))


def state_of(run: RunDir) -> str:
    return str(read_json(run.state)["state"]) if run.state.exists() else ""


def last_weights(run: RunDir) -> str:
    """A hash of the last epoch's weights."""
    return hashlib.sha256(run.weights(run.saved_epochs()[-1]).read_bytes()).hexdigest()


