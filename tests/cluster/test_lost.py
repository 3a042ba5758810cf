"""The real Slurm behind commands that are slow, fail, or lose its answer: no job is lost.

    python -m pytest tests/cluster/test_lost.py
"""

from __future__ import annotations

import json
import signal
import subprocess
from pathlib import Path

import pytest

from blip_art.cluster.record import read_jobs
from blip_art.files import RunDir
from tests.cluster.conftest import Cluster
from tests.cluster.jobs import Runs
from tests.mini import write_mini

LOST = ('/usr/bin/{name} "$@" >/dev/null\n'
        'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation'
        '" >&2\nexit 1\n')
SLOW = 'sleep 3\nexec /usr/bin/{name} "$@"\n'
SILENT = 'echo "{name}: error: Socket timed out on send/recv operation" >&2\nexit 1\n'
# Nothing of it runs: what is looked at is who knows of the job.
LATER = "now+1hour"


class Lost(Runs):
    """Runs in a folder of this file's own, and commands that stand before Slurm's."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = cluster.home / "lost"
        write_mini(self.folder / "mini", train=400, val=7)
        self.own(self.folder)

    def say(self, *words: str | Path, code: int = 0, **commands: str) -> str:
        """What launch.py prints while these commands are not Slurm's own."""
        done = self.cluster.launch(*words, cwd=self.folder, env=self.before(commands))
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def before(self, commands: dict[str, str]) -> dict[str, str]:
        folder = self.folder / "-".join(["bin", *commands])
        folder.mkdir(exist_ok=True)
        for name, does in commands.items():
            (folder / name).write_text("#!/bin/sh\n" + does.replace("{name}", name))
            (folder / name).chmod(0o755)
        return {"PATH": f"{folder}:{self.cluster.environment()['PATH']}"}

    def words(self, name: str, begin: str = LATER) -> list[str | Path]:
        site = self.cluster.write_site(f"begin-{begin}", sbatch={"begin": begin})
        return ["train", "mini/config.yaml", "--run", f"runs/{name}", "--no-score",
                "--cluster", "slurm", "--site", site]

    def named(self, run: RunDir) -> list[str]:
        """Its jobs in the queue, whoever knows of them."""
        return [line.split()[0] for line in self.queue(f"--name=train-{run.name}")]

    def known(self, run: RunDir) -> list[str]:
        return [job.job_id for job in read_jobs(run)]


@pytest.fixture(scope="module")
def lost(cluster: Cluster) -> Lost:
    return Lost(cluster)


def test_a_lost_answer_is_looked_for_and_a_slow_queue_is_named(lost: Lost) -> None:
    run = RunDir(lost.folder / "runs" / "found")
    said = lost.say(*lost.words("found"), sbatch=LOST, squeue=SLOW)
    [job] = lost.named(run)
    assert f"found: job {job}" in said
    assert f"submitted: train {job}" in said
    assert lost.known(run) == [job]
    done = lost.cluster.launch("status", run.path, "--json", cwd=lost.folder,
                               env=lost.before({"squeue": SLOW}))
    assert done.stderr == "asking Slurm …\n"
    assert json.loads(done.stdout)["runs"][0]["state"] == "pending"
    silent = lost.say("status", run.path, squeue=SILENT)
    assert "states as the run folders have them: squeue: Socket timed out" in silent
    assert f"cancelled train job {job}" in lost.say("cancel", run.path)
    assert lost.named(run) == []


def test_a_job_that_has_started_is_found_while_squeue_is_silent(lost: Lost) -> None:
    run = RunDir(lost.folder / "runs" / "started")
    said = lost.say(*lost.words("started", "now"), sbatch=LOST, squeue=SILENT)
    [job] = lost.known(run)
    assert f"found: job {job}" in said
    lost.say("cancel", run.path)


def test_a_job_that_nobody_could_look_for_runs_nothing_and_is_found_later(lost: Lost) -> None:
    run = RunDir(lost.folder / "runs" / "later")
    said = lost.say(*lost.words("later", "now+45"), code=2, sbatch=LOST, squeue=SILENT)
    assert "squeue does not answer either" in said
    lost.cluster.wait(lambda: not lost.named(run), 180, "the end of a job with nothing to run")
    said = lost.say("status", run.path)
    [job] = lost.known(run)
    assert f"train job {job} is cancelled: its submission had been given up" in said
    assert f"job {job} has nothing to run" in lost.said(run)
    assert "given up" not in lost.say("status", run.path)


def test_ctrl_c_and_sigkill_while_sbatch_answers_leave_no_job_that_nobody_knows(
        lost: Lost) -> None:
    slow = "/usr/bin/sbatch \"$@\"\ncode=$?\nsleep 6\nexit $code\n"
    run = RunDir(lost.folder / "runs" / "killed")
    launcher = start(lost, "killed", slow)
    lost.cluster.wait(lambda: lost.named(run), 60, "its job")
    launcher.send_signal(signal.SIGINT)
    said, _ = launcher.communicate(timeout=60)
    assert launcher.returncode == 130
    assert "cancelled what was submitted before" in said
    assert lost.named(run) == []
    launcher = start(lost, "killed", slow)
    lost.cluster.wait(lambda: lost.named(run), 60, "its job")
    launcher.kill()
    launcher.wait()
    [job] = lost.named(run)
    assert job not in lost.known(run)
    said = lost.say("resume", run.path)
    assert f"train job {job} is taken over" in said
    assert f"train job {job} is pending, nothing to do" in said
    assert lost.known(run)[-1] == job
    lost.say("cancel", run.path)


def start(lost: Lost, name: str, sbatch: str) -> subprocess.Popen[str]:
    cluster = lost.cluster
    return cluster.popen([cluster.python, cluster.checkout / "launch.py", *lost.words(name)],
                         lost.folder, lost.before({"sbatch": sbatch}))
