"""slurm/job.sh with a Slurm that is slow, refuses, or has cancelled the job (fault injection).

    python -m pytest tests/test_job_script.py
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path

import pytest

from blip_art.cluster.allocation import Task, note_progress
from blip_art.cluster.jobs import Job
from blip_art.cluster.plan import Place, predict_job
from blip_art.files import RunDir, write_json
from blip_art.run_state import read_state


class FakeSlurm:
    """squeue and scontrol that note their calls, and what they answer."""

    def __init__(self, folder: Path, repo: Path) -> None:
        self.folder, self.script = folder, repo / "slurm" / "job.sh"
        self.put("squeue", "echo RUNNING")
        self.put("scontrol", "exit 0")
        self.scratch = folder / "scratch"

    def put(self, name: str, answer: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\necho "$0 $*" >>{self.folder}/calls\n{answer}\n')
        path.chmod(0o755)

    def start(self, command: str, **environ: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["bash", str(self.script), str(self.folder), "3", "bash", "-c", command], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7",
                 "USER": "me", "SCRATCH": str(self.scratch),
                 "BLIP_ART_RETRY_S": "0", "BLIP_ART_WAIT_S": "0", **environ})

    def run(self, command: str, **environ: str) -> tuple[int, str]:
        process = self.start(command, **environ)
        said, _ = process.communicate(timeout=30)
        return process.returncode, said

    def requeued(self) -> list[str]:
        calls = self.folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        return [line.split()[-1] for line in lines if "scontrol requeue" in line]


@pytest.fixture
def slurm(tmp_path: Path, repo: Path) -> FakeSlurm:
    return FakeSlurm(tmp_path, repo)


@pytest.mark.parametrize("code", [0, 1, 2])
def test_a_job_that_ends_by_itself_keeps_its_code(slurm: FakeSlurm, code: int) -> None:
    assert slurm.run(f"exit {code}")[0] == code
    assert slurm.requeued() == []


def test_followers_are_told_of_the_start_the_end_and_the_wait(slurm: FakeSlurm) -> None:
    (slurm.folder / "progress_7").write_text("of an earlier start\n")
    slurm.run("exit 3")
    assert (slurm.folder / "progress_7").read_text() == ""
    assert (slurm.folder / "ended_7").read_text() == "3 0\n"
    request = f"echo SIGTERM >{slurm.folder}/requeue_7; exit 130"
    slurm.run(request)
    assert (slurm.folder / "again_7").exists()
    assert not (slurm.folder / "ended_7").exists()
    slurm.run(request, SLURM_RESTART_COUNT="3")
    assert not (slurm.folder / "again_7").exists()
    assert (slurm.folder / "ended_7").read_text() == (
        "130 3\nlimit of restarts reached (3, max_requeues); 'launch.py resume' goes on\n")
    slurm.run("exit 3", SLURM_ARRAY_JOB_ID="5", SLURM_ARRAY_TASK_ID="0")
    assert (slurm.folder / "ended_5_0").read_text() == "3 0\n"


def test_a_request_is_answered_however_often_slurm_fails_first(slurm: FakeSlurm) -> None:
    slurm.put("squeue", f"[[ $(grep -c squeue {slurm.folder}/calls) -gt 2 ]] && echo RUNNING")
    slurm.put("scontrol", f"[[ $(grep -c scontrol {slurm.folder}/calls) -gt 2 ]]")
    code, said = slurm.run(f"echo SIGUSR2 >{slurm.folder}/requeue_7; exit 130")
    assert code == 130
    assert "job 7 is queued again (restart 1 of at most 3)" in said
    assert slurm.requeued() == ["7", "7", "7"]


def test_a_slurm_that_never_answers_is_named(slurm: FakeSlurm) -> None:
    slurm.put("squeue", "exit 1")
    code, said = slurm.run(f"echo SIGUSR2 >{slurm.folder}/requeue_7")
    assert code == 130
    assert "could not be queued again" in said


@pytest.mark.parametrize(("number", "name"), [("USR2", "SIGUSR2"), ("TERM", "SIGTERM")])
def test_a_step_that_died_before_it_could_listen_is_queued_again(
        slurm: FakeSlurm, number: str, name: str) -> None:
    _, said = slurm.run(f"kill -{number} $$")
    assert f"was stopped: {name} before it could listen" in said
    assert slurm.requeued() == ["7"]


def test_a_cancelled_job_stays_cancelled(slurm: FakeSlurm) -> None:
    slurm.put("squeue", "echo COMPLETING")
    code, said = slurm.run(f"echo SIGTERM >{slurm.folder}/requeue_7; exit 130")
    assert (code, slurm.requeued()) == (130, [])
    assert "is COMPLETING: not queued again" in said


def test_the_number_of_restarts_is_bounded(slurm: FakeSlurm) -> None:
    request = f"echo SIGUSR2 >{slurm.folder}/requeue_7"
    assert "queued again 3 times" in slurm.run(request, SLURM_RESTART_COUNT="3")[1]
    assert slurm.requeued() == []
    slurm.run(request, SLURM_RESTART_COUNT="2")
    assert slurm.requeued() == ["7"]


def test_starts_without_a_new_checkpoint_are_not_repeated_for_ever(slurm: FakeSlurm) -> None:
    slurm.put("squeue", '[[ $* == *%l* ]] && echo 2:00 || echo RUNNING')
    run = slurm.folder / "run"
    job = Job("train", ("true",), cwd=str(slurm.folder), state="run/state.json")
    task = Task("7", "7", 0, 0, 1, 0, 0, ("v100-1",))
    (run / "checkpoints").mkdir(parents=True)
    (run / "checkpoints" / "last.pt").touch()
    note_progress(job, slurm.folder, task)
    note = slurm.folder / "progress_7"
    text = note.read_text()

    def start(number: int, command: str = "", fair_s: str = "0") -> str:
        noted = f"printf %s {shlex.quote(text)} >{note}; sleep 0.02; {command or 'true'}"
        return slurm.run(f"{noted}; echo SIGUSR2 >{slurm.folder}/requeue_7",
                         SLURM_RESTART_COUNT=str(number % 3), BLIP_ART_FAIR_S=fair_s)[1]

    assert "is queued again" in start(0)
    assert "is queued again" in start(1)
    assert "is queued again" in start(1, fair_s="600")  # too short, by preemption
    assert "is queued again" in start(1, f"touch {run}/checkpoints/last.pt")
    assert "is queued again" in start(1, f"mkdir {run}/predictions; echo >{run}/predictions/a.json")
    assert "is queued again" in start(1)
    assert "is queued again" in start(2)
    said = start(2)
    assert "job 7 was stopped 3 times in a row before there was a new checkpoint" in said
    state = read_state(RunDir(run))
    assert state.name == "failed"
    assert state.why in said
    assert (slurm.folder / "ended_7").read_text() == f"1 2\n{state.why}\n"
    assert "is queued again" in start(0)  # another job of this number


def test_captions_that_never_come_are_not_repeated_for_ever(slurm: FakeSlurm) -> None:
    slurm.put("squeue", '[[ $* == *%l* ]] && echo 2:00 || echo RUNNING')
    run = RunDir(slurm.folder / "run")
    write_json(run.state, {"state": "finished"})  # of the training
    run.checkpoints.mkdir()
    place = Place("python3", str(slurm.folder), "code", layout="node")
    job = predict_job(place, RunDir(Path("run")), ["--split", "test"])
    note_progress(job, slurm.folder, Task("7", "7", 0, 0, 1, 0, 0, ("v100-1",)))
    note = slurm.folder / "progress_7"
    text = note.read_text()

    def start(command: str = "true") -> str:
        noted = f"printf %s {shlex.quote(text)} >{note}; sleep 0.02; {command}"
        return slurm.run(f"{noted}; echo SIGUSR2 >{slurm.folder}/requeue_7",
                         SLURM_RESTART_COUNT="1", BLIP_ART_FAIR_S="0")[1]

    assert "is queued again" in start()
    assert "is queued again" in start()
    assert "is queued again" in start(f"mkdir {run.path}/predictions; "
                                      f"echo >{run.predictions('test', 0)}")
    assert "is queued again" in start(f"touch {run.last_checkpoint}")  # of no use to captions
    assert "is queued again" in start()
    said = start()
    assert "job 7 was stopped 3 times in a row before there was a new" in said
    assert read_state(run).name == "finished"
    assert (slurm.folder / "ended_7").read_text().startswith("1 1\nstopped 3 times in a row")


def test_half_of_a_short_time_limit_is_enough_of_a_start(slurm: FakeSlurm) -> None:
    slurm.put("squeue", '[[ $* == *%l* ]] && echo 0-00:00:02 || echo RUNNING')
    for _ in range(2):
        slurm.run(f"printf 'a\\nb\\nc\\n' >{slurm.folder}/progress_7; sleep 1.1; "
                  f"echo SIGUSR2 >{slurm.folder}/requeue_7", SLURM_RESTART_COUNT="1")
    assert (slurm.folder / "idle_7").read_text() == "2\n"


@pytest.mark.parametrize("state", ["PENDING", "RUNNING"])
def test_a_follower_leaves_its_node_until_training_starts_again(slurm: FakeSlurm,
                                                                state: str) -> None:
    slurm.put("squeue", f'[[ $* == *--jobs=6* ]] && echo {state} || echo RUNNING')
    code, said = slurm.run(f"echo 6 >{slurm.folder}/follows_7")
    assert code == 130
    assert "job 7 was stopped: job 6, which it follows, waits in the queue" in said
    calls = [line.partition(" ")[2] for line in (slurm.folder / "calls").read_text().splitlines()
             if "scontrol" in line]
    assert calls == ["requeue 7", "update jobid=7 dependency=after:6"]
    assert not (slurm.folder / "follows_7").exists()


@pytest.mark.parametrize("answer", [
    "echo CANCELLED", "true", "echo slurm_load_jobs error: Invalid job id specified; exit 1"])
def test_a_follower_of_a_job_that_is_gone_ends(slurm: FakeSlurm, answer: str) -> None:
    slurm.put("squeue", f'[[ $* == *--jobs=6* ]] || {{ echo RUNNING; exit; }}; {answer}')
    code, said = slurm.run(f"echo 6 >{slurm.folder}/follows_7; exit 1")
    assert (code, slurm.requeued()) == (1, [])
    assert "job 6, which this one follows, has ended" in said
    assert (slurm.folder / "ended_7").read_text() == "1 0\n"


def test_an_element_of_an_array_is_named_as_such(slurm: FakeSlurm) -> None:
    slurm.run(f"echo SIGUSR2 >{slurm.folder}/requeue_7", SLURM_ARRAY_JOB_ID="7",
              SLURM_ARRAY_TASK_ID="0")
    assert slurm.requeued() == ["7_0"]


def test_a_signal_to_the_script_becomes_a_file_and_the_job_ends_in_its_own_time(
        slurm: FakeSlurm) -> None:
    stop = slurm.folder / "stop_7"
    process = slurm.start(f"touch {slurm.folder}/began; until [[ -e {stop} ]]; do sleep 0.05; done;"
                          f" sleep 0.3; echo saved; cp {stop} {slurm.folder}/requeue_7")
    deadline = time.monotonic() + 10
    while not (slurm.folder / "began").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGUSR2)
    said, _ = process.communicate(timeout=30)
    assert "saved\njob 7 was stopped: SIGUSR2" in said
    assert slurm.requeued() == ["7"]
    assert not stop.exists()


def make_scratch(folder: Path, *names: str) -> list[Path]:
    """Folders as singularity/run.sh makes them, with something inside."""
    made = [folder / name for name in names]
    for path in made:
        path.mkdir(parents=True)
        path.chmod(0o700)
        (path / "fuse").mkdir()
        (path / "fuse" / "squashfuse").touch()
    return made


def test_the_scratch_folder_is_removed_and_only_that(slurm: FakeSlurm) -> None:
    scratch = slurm.scratch
    make_scratch(scratch, "blip_art-me-7", "blip_art-me-7.AbC123")
    kept = make_scratch(scratch, "blip_art-me-71", "blip_art-you-7", "blip_art-me-7.open12",
                        "elsewhere", "blip_art-me-7.theirs")
    kept[2].chmod(0o777)
    (scratch / "blip_art-me-7.link12").symlink_to(kept[3])
    if os.geteuid() == 0:
        os.chown(kept[4], 65534, -1)
    else:
        kept[4].chmod(0o770)
    assert slurm.run("exit 3")[0] == 3
    assert {path.name for path in scratch.iterdir()} == {
        *(path.name for path in kept), "blip_art-me-7.link12"}
    assert all((path / "fuse" / "squashfuse").exists() for path in kept)


def test_the_scratch_folder_is_gone_before_the_job_is_queued_again(slurm: FakeSlurm) -> None:
    slurm.put("scontrol", f"ls {slurm.scratch} >{slurm.folder}/left")
    make_scratch(slurm.scratch, "blip_art-me-7")
    slurm.run("kill -TERM $$")
    assert slurm.requeued() == ["7"]
    assert (slurm.folder / "left").read_text() == ""


def test_no_node_keeps_a_scratch_folder(slurm: FakeSlurm) -> None:
    slurm.put("srun", "while [[ $1 == -* ]]; do shift; done\n"
                      "for SLURMD_NODENAME in a b; do export SLURMD_NODENAME; \"$@\"; done")
    for node in ("a", "b"):
        make_scratch(slurm.scratch / node, "blip_art-me-7")
    slurm.run("exit 0", SCRATCH=f"{slurm.scratch}/$SLURMD_NODENAME", SLURMD_NODENAME="a",
              SLURM_JOB_NUM_NODES="2")
    assert not list(slurm.scratch.glob("*/*"))
