"""A user's day on the real cluster: doctor, status, logs, cancel, resume, fetch.

    python -m pytest tests/cluster/test_day.py
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from blip_art.files import RunDir, read_json
from tests.cluster import daemons
from tests.cluster.conftest import Cluster
from tests.cluster.jobs import Runs, state_of
from tests.mini import write_mini


class Day(Runs):
    """Runs in a folder of this file's own."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = cluster.home / "day"
        write_mini(self.folder / "mini", train=400, val=7)
        self.own(self.folder)

    def say(self, *words: str | Path, code: int = 0, **env: str) -> str:
        """What launch.py prints, which must end with `code`."""
        done = self.cluster.launch(*words, cwd=self.folder, env=env)
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + (done.stderr if code else "")

    def row(self, run: RunDir, **env: str) -> dict[str, Any]:
        """The run's row of status."""
        found = json.loads(self.say("status", run.path, "--json", code=0, **env))
        [row] = found["runs"]
        return {**row, "notes": found["notes"]}

    def reach(self, run: RunDir, state: str) -> None:
        self.cluster.wait(lambda: self.row(run)["state"] == state, 180,
                          f"{run.name} to be {state}: {self.row(run)}")


@pytest.fixture(scope="module")
def day(cluster: Cluster) -> Day:
    return Day(cluster)


@pytest.fixture(scope="module")
def alone(day: Day) -> RunDir:
    """A run that has finished and is not scored."""
    run = day.train("alone", "train.epochs=1")
    day.wait(run)
    day.wait_until_gone(run)
    return run


@pytest.mark.parametrize("layout", ["node", "gpu"])
def test_doctors_job_finds_a_node_fit(day: Day, layout: str) -> None:
    site = day.cluster.write_site(f"doctor_{layout}", layout=layout)
    said = day.say("doctor", "--job", "--site", site)
    for line in (" known scores computed", "has kernels for sm_70", "4 ranks add up by gloo",
                 "SIGUSR2 reached Python, all ranks agree (4 ranks)", "signal round trip: ",
                 f"inside {day.cluster.image}", "the model hub is off"):
        assert line in said
    assert "fail |" not in said
    assert ".doctor" not in day.say("status")  # it is no run


def test_doctor_names_what_slurm_would_refuse(day: Day) -> None:
    site = day.cluster.write_site("wrong", partition="fast", account="nobody", image="/no/a.sif",
                                  cpu_time_min=100_000, overlay=str(day.cluster.site))
    said = day.say("doctor", "--job", "--site", site, code=1)
    for line in ("no partition fast | there are: gpu", "has no account nobody | yours: art",
                 "a GPU job is refused", "no image at /no/a.sif | build it with", "is no overlay",
                 "cpu_time_min: 1440", "no job is submitted before"):
        assert line in said
    several = day.say("doctor", "--site", day.cluster.write_site("several",
                                                                 partition="preempt,gpu"))
    for line in ("ok   | partition preempt: 2 of 2", "ok   | partition gpu: 2 of 2",
                 "ok   | partition preempt queues again what it preempts",
                 "ok   | arrays of up to 1001 jobs", "a GPU job is accepted"):
        assert line in several


def test_a_run_is_watched_cancelled_and_resumed(day: Day) -> None:
    run = day.train("a b", "train.epochs=200", scored=True)
    day.cluster.wait(lambda: day.row(run)["epochs_done"] > 0, 240, day.said(run))
    row = day.row(run)
    assert (row["state"], row["epochs"]) == ("running", 200)
    assert re.match(rf"job {day.job(run)} on v100-\d, .* left; epoch \d+/200(, captioning| step \d+"
                    r"/\d+, \d+ pictures/s, .* to go).*, checkpoint \d+ s old$", row["why"])
    assert row["loss"] > 0
    assert row["gpu_hours_exact"]
    watched = day.cluster.popen([day.cluster.python, day.cluster.checkout / "launch.py", "logs",
                                 "-f", run.path], cwd=day.folder)
    said = day.say("cancel", run.path)
    for stage in ("train", "follow", "score", "collect"):
        assert f"cancelled {stage} job {day.job(run, stage)}" in said
    # It ends by itself, when the job has.
    log, _ = watched.communicate(timeout=120)
    assert "epoch   0  loss" in log
    assert "has ended" in log
    day.wait_until_gone(run)
    assert state_of(run) == "stopped"
    assert day.starts(run) == 1
    assert day.row(run)["state"] == "cancelled"
    done = day.row(run)["epochs_done"]
    day.say("resume", run.path)
    day.reach(run, "running")
    assert "nothing to do" in day.say("resume", run.path)
    day.cluster.wait(lambda: day.row(run)["epochs_done"] > done, 180, day.said(run))
    # As the kernel does where memory is short: the same reason everywhere.
    os.kill(ranks_of(run)[0], signal.SIGKILL)
    day.reach(run, "failed")
    why = read_json(run.state)["why"]
    assert "was ended by SIGKILL (often: not enough memory)" in why
    assert day.row(run)["why"].startswith(why)
    day.say("cancel", run.path)
    day.wait_until_gone(run)
    assert day.row(run)["state"] == "failed"
    assert f"error: {why}" in day.say("logs", run.path)
    assert "epoch   0" not in day.say("logs", run.path)
    fewer_gpus_go_on(day, run)


def fewer_gpus_go_on(day: Day, run: RunDir) -> None:
    words = ("train", "mini/config.yaml", "--run", run.path, "train.batch_size=2",
             "train.epochs=200", "--no-score")
    refused = day.launch(*words, "--gpus", "3")
    assert refused.returncode == 2
    assert "cannot share evenly; go on with 1, 2 or 4 in all" in refused.stderr
    done = day.row(run)["epochs_done"]
    assert day.launch(*words, "--gpus", "2").returncode == 0
    day.cluster.wait(lambda: day.row(run)["epochs_done"] > done, 180, day.said(run))
    assert "goes on with 2 processes, 4 began it: train.accumulate is 2" in day.said(run)
    assert read_json(run.manifest)["ranks"] == 4
    day.say("cancel", run.path)
    day.wait_until_gone(run)


def ranks_of(run: RunDir) -> list[int]:
    """The processes that train it."""
    # resume names the folder by its whole path
    named, found = f"runs/{run.name}\0".encode(), []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # one that has ended meanwhile
            said = path.read_bytes()
            if named in said and b"-u\0-m\0blip_art.train\0" in said:
                found.append(int(path.parent.name))
    return found


def test_status_does_without_accounts_and_without_a_controller(day: Day, alone: RunDir) -> None:
    run = alone
    bin = day.folder / "bin"
    bin.mkdir()
    (bin / "squeue").symlink_to("/usr/bin/squeue")
    row = day.row(run, PATH=f"{bin}")
    assert (row["state"], row["epochs_done"], row["gpu_hours_exact"]) == ("finished", 1, False)
    assert "no command sacct" in row["notes"][0]
    dead = day.folder / "dead.conf"
    dead.write_text(daemons.SLURM_CONF.read_text().replace("SlurmctldPort=", "SlurmctldPort=1"))
    row = day.row(run, SLURM_CONF=str(dead))
    assert row["state"] == "finished"
    assert "controller does not answer" in row["notes"][0]


def test_a_profile_is_written_and_a_shell_runs_on_a_node(day: Day) -> None:
    profile = day.folder / "own.yaml"
    assert "./launch.py doctor" in day.say("site", "init", "-o", profile)
    assert "there is a profile at" in day.say("site", "init", "-o", profile, code=2)
    places = {"image": day.cluster.image, "overlay": day.cluster.overlay}
    profile.write_text("".join(
        f"{key}: {places[key]}\n" if (key := line.partition(":")[0]) in places else line
        for line in profile.read_text().splitlines(keepends=True)))
    assert "fail |" not in day.say("doctor", "--site", profile)
    inside = ("import os, sys, torch, pycocoevalcap; print(os.environ['SLURM_JOB_NODELIST'], "
              "os.environ['CUDA_VISIBLE_DEVICES'], os.getcwd()); sys.exit(3)")
    said = day.say("shell", "--gpus", "2", "--time", "5", "--port", "8123", "--site", profile,
                   "--", "python3", "-c", inside, code=3)
    assert f" 0,1 {day.folder}\n" in said
    node = said.partition(" ")[0]
    assert f"ssh -N -L 8123:{node}:8123 {day.cluster.user.pw_name}@" in said
    # With a terminal, as people use it.
    words = [day.cluster.python, day.cluster.checkout / "launch.py", "shell", "--cpu", "--site",
             profile, "--", "tty"]
    typed = day.cluster.run(["script", "-qec", shlex.join(map(str, words)), "/dev/null"],
                            cwd=day.folder)
    assert "/dev/pts/" in typed.stdout
    assert not [path for path in Path("/tmp").glob("blip_art-shell.*")
                if path.owner() == day.cluster.user.pw_name]


def test_a_clean_run_is_still_scored(day: Day, alone: RunDir) -> None:
    said = day.say("clean", alone.path)
    for kind in ("checkpoints", "code", "pickles"):
        assert f"{kind}: " in said
    assert alone.last_checkpoint.exists()
    assert "removed " in day.say("clean", alone.path, "--yes")
    assert not alone.saved_checkpoints()
    assert not alone.code.exists()
    assert day.row(alone)["state"] == "finished"
    assert day.launch("score", "--run", alone.path).returncode == 0
    assert "job" in day.say("clean", alone.path)  # which keeps all of it
    day.cluster.wait(alone.scores("val", 0).exists, 240, day.said(alone))
    day.wait_until_gone(alone)


def test_a_run_that_died_before_it_wrote_is_explained(day: Day) -> None:
    day.train("dead", scratch="/proc/nowhere")
    run = RunDir(day.folder / "runs" / "dead")
    day.wait_until_gone(run)
    row = day.row(run)
    assert (row["state"], row["why"]) == ("failed", f"job {day.job(run)}: exit code 2")
    assert "cannot write to scratch folder /proc/nowhere" in day.say("logs", run.path)


def test_corenlp_is_fetched_through_the_image_where_jgo_is_not(day: Day) -> None:
    folder = day.folder / "cache"
    try:
        said = day.say("fetch", "corenlp", "--to", folder)
        assert "stanford-corenlp-3.6.0-models.jar" in said
    finally:
        shutil.rmtree(folder, ignore_errors=True)
