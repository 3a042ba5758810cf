"""No job is lost when sbatch is interrupted, answers late or not at all (fault injection).

    python -m pytest tests/test_lost_answers.py
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from blip_art.cluster import sending
from blip_art.cluster.batch import slurm_place, sweep_stages, train_stages
from blip_art.cluster.pending import FORGOTTEN_S, read_pending, settle, settle_all
from blip_art.cluster.plan import train_job
from blip_art.cluster.record import read_jobs
from blip_art.cluster.sending import Unknown, is_refusal
from blip_art.cluster.site import load_site
from blip_art.cluster.slurm import Completed, ControllerDown, Slurm
from blip_art.cluster.status import find_runs, survey
from blip_art.cluster.submit import Submission, submit
from blip_art.errors import UserError
from blip_art.files import RunDir
from blip_art.work import cancelled_jobs

SUBMIT = '''n=$(($(cat n 2>/dev/null || echo 10) + 1)); echo $n >n; echo "$n|$1" >>queue
'''
ANSWER = "echo Submitted batch job $n\n"
LOST = ("echo 'sbatch: error: Batch job submission failed: Socket timed out on send/recv "
        "operation' >&2; exit 1\n")
SILENT = "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1\n"


class FakeSlurm:
    """sbatch, squeue and scancel in PATH, with a queue in a file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.put("sbatch", SUBMIT + ANSWER)
        self.put("squeue", "cat queue\n")
        self.put("scancel", 'for id; do sed -i "/^$id|/d" queue; done\n')

    def put(self, name: str, does: str) -> None:
        path = self.folder / name
        path.write_text(f'#!/bin/bash\ncd {self.folder}\necho {name} >>calls\ntouch queue\n{does}')
        path.chmod(0o755)

    def put_once(self, name: str, nth: int, does: str, else_does: str) -> None:
        """Only the nth call is another one."""
        count = f"$(grep -c {name} calls)"
        self.put(name, f"if [[ {count} == {nth} ]]\nthen {does}else {else_does}fi\n")

    def queue(self) -> list[str]:
        path = self.folder / "queue"
        return [line.split("|")[0] for line in path.read_text().splitlines()
                ] if path.exists() else []

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().split() if path.exists() else []


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSlurm:
    monkeypatch.chdir(tmp_path)
    fake = FakeSlurm(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.environ['PATH']}")
    monkeypatch.setattr(sending, "LOOKS_AFTER_S", (0.0, 0.0))
    return fake


def submit_training(name: str = "art", cluster: str = "") -> dict[str, str]:
    """A training, its follower, scores and a report."""
    Path("mine.yaml").write_text("partition: gpu\ncontainer: ''\n")
    site, run = load_site("mine.yaml"), RunDir(f"runs/{name}")
    stages = train_stages(slurm_place(site, run.code), run, "a.yaml")
    return submit(stages, Submission(site, run.code, run.slurm, ("train", "a.yaml"),
                                     cluster=cluster))


def pickles(run: RunDir) -> list[str]:
    return [path.name for path in run.slurm.glob("submitit/*.pkl") if path.exists()]


def test_a_job_whose_answer_was_lost_is_found(slurm: FakeSlurm,
                                              capsys: pytest.CaptureFixture[str]) -> None:
    slurm.put_once("sbatch", 2, SUBMIT + LOST, SUBMIT + ANSWER)
    numbers = submit_training()
    assert numbers == {"train": "11", "follow": "12", "score": "13", "collect": "14"}
    run = RunDir("runs/art")
    assert [job.job_id for job in read_jobs(run)] == slurm.queue() == ["11", "12", "13", "14"]
    assert read_jobs(run)[2].after == ("afterok:11", "afterany:12")
    assert read_jobs(run)[1].log.endswith("follow_12_{restart}.log")
    assert not run.pending.exists()
    said = capsys.readouterr().err
    assert "lost Slurm's answer" in said
    assert "Socket timed out" in said
    assert "found: job 12" in said


def test_a_job_that_came_after_ctrl_c_is_cancelled(slurm: FakeSlurm) -> None:
    slurm.put_once("sbatch", 2, f"sleep 1\n{SUBMIT}{ANSWER}", SUBMIT + ANSWER)
    after(lambda: slurm.calls().count("sbatch") == 2, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        submit_training()
    run = RunDir("runs/art")
    assert slurm.queue() == []
    assert cancelled_jobs(run) == {"11", "12"} == {job.job_id for job in read_jobs(run)}
    assert not run.pending.exists()
    assert pickles(run) == []


def after(true: Callable[[], bool], number: int) -> None:
    """Signal this process once something is true."""
    def wait() -> None:
        while not true():
            time.sleep(0.02)
        time.sleep(0.2)
        os.kill(os.getpid(), number)
    threading.Thread(target=wait, daemon=True).start()


def test_what_slurm_may_still_get_runs_nothing_and_is_cancelled_later(
        slurm: FakeSlurm, repo: Path) -> None:
    slurm.put("squeue", SILENT)
    slurm.put("scancel", SILENT)
    slurm.put_once("sbatch", 2, SUBMIT + LOST, SUBMIT + ANSWER)
    with pytest.raises(Unknown, match="squeue does not answer either"):
        submit_training()
    [run] = find_runs(["runs"])
    assert [one.withdrawn for one in read_pending(run.slurm)] == [True, True]
    assert run_job(repo, run) == (1, "job 11 has nothing to run: its submission was given up\n")
    with pytest.raises(ControllerDown):
        settle_all([run], Slurm())
    slurm.put("squeue", "cat queue\n")
    slurm.put("scancel", 'for id; do sed -i "/^$id|/d" queue; done\n')
    said = settle_all([run], Slurm())
    assert slurm.queue() == []
    assert [line.split(": ")[1] for line in said] == ["train job 11 is cancelled",
                                                      "follow job 12 is cancelled"]
    assert cancelled_jobs(run) == {"11", "12"} == {job.job_id for job in read_jobs(run)}
    assert settle_all([run], Slurm()) == []


def run_job(repo: Path, run: RunDir) -> tuple[int, str]:
    """The batch script's last line, as a node would run it."""
    script = next(run.slurm.glob("submitit/train-*.sh")).read_text()
    name = next(line.partition("=")[2] for line in script.splitlines() if "SUBMISSION=" in line)
    done = subprocess.run(
        ["bash", repo / "slurm/job.sh", run.slurm, "3", "echo", "ran"], text=True, check=False,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=20,
        env={**os.environ, "SLURM_JOB_ID": "11", "BLIP_ART_SUBMISSION": name})
    return done.returncode, done.stdout


def test_a_job_that_starts_before_its_answer_finds_what_it_runs(slurm: FakeSlurm,
                                                                repo: Path) -> None:
    submit_training()
    run = RunDir("runs/art")
    link = run.slurm / "submitit" / "11_submitted.pkl"
    assert link.exists()
    link.unlink()
    assert run_job(repo, run) == (0, "ran\n")
    assert link.exists()


def test_a_job_that_has_started_is_found_without_a_queue(slurm: FakeSlurm) -> None:
    slurm.put("squeue", SILENT)
    # As job.sh does on the node.
    link = 'ln -s "$(basename "${1%.sh}")_0.pkl" "$(dirname "$1")/${n}_submitted.pkl"\n'
    slurm.put_once("sbatch", 1, SUBMIT + link + LOST, SUBMIT + ANSWER)
    assert submit_training()["train"] == "11"


KILLED = """\
import sys; sys.path.insert(0, sys.argv[1])
from tests.test_lost_answers import submit_training
submit_training()
"""


def test_the_job_of_a_killed_launcher_is_taken_over(slurm: FakeSlurm, repo: Path) -> None:
    slurm.put("sbatch", f"sleep 1\n{SUBMIT}{ANSWER}")
    launcher = subprocess.Popen([sys.executable, "-c", KILLED, str(repo)])
    wait_for((slurm.folder / "calls").exists)
    launcher.kill()
    launcher.wait()
    [run] = find_runs(["runs"])
    assert "Slurm does not have it, so far" in settle_all([run], Slurm())[0]
    wait_for(slurm.queue)
    [said] = settle_all([run], Slurm())
    assert "train job 11 is taken over" in said
    assert [job.job_id for job in read_jobs(run)] == ["11"]
    assert len(pickles(run)) == 1


def wait_for(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not true() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert true()


def test_a_sweep_is_settled_through_any_of_its_runs(slurm: FakeSlurm) -> None:
    Path("mine.yaml").write_text("partition: gpu\ncontainer: ''\n")
    site, sweep = load_site("mine.yaml"), RunDir("runs/six")
    members = [RunDir(f"runs/six/seed={seed}") for seed in (1, 2)]
    place = slurm_place(site, sweep.code)
    stages = sweep_stages(place, members, [train_job(place, "a.yaml", run) for run in members],
                          nodes=1, parallel=0)
    slurm.put("squeue", SILENT)
    slurm.put("sbatch", SUBMIT + LOST)
    with pytest.raises(Unknown):
        submit(stages, Submission(site, sweep.code, sweep.slurm))
    slurm.put("squeue", "cat queue\n")
    assert "train job 11 is cancelled" in settle_all(members[1:], Slurm())[0]
    assert [read_jobs(run)[0].job_id for run in members] == ["11_0", "11_1"]
    assert cancelled_jobs(members[0]) == {"11_0"}
    assert slurm.queue() == []


def test_what_never_came_is_forgotten(slurm: FakeSlurm) -> None:
    slurm.put("sbatch", LOST)
    with pytest.raises(Unknown, match="the queue does not have the job"):
        submit_training()
    folder = RunDir("runs/art").slurm
    [pending] = read_pending(folder)
    settle(folder, Slurm(), now=pending.began + FORGOTTEN_S - 1)
    assert read_pending(folder) == [pending.__class__(**{**vars(pending), "withdrawn": True})]
    assert "never had" in settle(folder, Slurm(), now=pending.began + FORGOTTEN_S + 1)[0]
    assert not RunDir("runs/art").pending.exists()


def test_what_was_sent_to_another_cluster_is_left_to_it(slurm: FakeSlurm) -> None:
    slurm.put("sbatch", SUBMIT + LOST)
    slurm.put("squeue", SILENT)
    with pytest.raises(Unknown):
        submit_training(cluster="one")
    folder = RunDir("runs/art").slurm
    [pending] = read_pending(folder)
    slurm.put("squeue", "cat queue\n")
    slurm.put("scontrol", "echo 'ClusterName = two'\n")
    assert "on cluster one" in settle(folder, Slurm(), now=pending.began + 2 * FORGOTTEN_S)[0]
    assert read_pending(folder)
    slurm.put("scontrol", "echo 'ClusterName = one'\n")
    assert "job 11 is cancelled" in settle(folder, Slurm())[0]


def test_one_folder_that_cannot_be_settled_does_not_stop_the_others(slurm: FakeSlurm) -> None:
    slurm.put("squeue", SILENT)
    slurm.put("sbatch", SUBMIT + LOST)
    for name in ("a", "b", "c"):
        with pytest.raises(Unknown):
            submit_training(name)
    runs = find_runs(["runs"])
    runs[0].pending.write_text("[{")
    runs[1].submission_lock.unlink(missing_ok=True)
    runs[1].submission_lock.mkdir()  # like a folder without write permission, whoever we are
    slurm.put("squeue", "cat queue\n")
    damaged, closed, settled = settle_all(runs, Slurm())
    assert "a/slurm/pending.json is no list of open submissions" in damaged
    assert "cannot write" in closed
    assert "train job 13 is cancelled" in settled
    with pytest.raises(UserError, match="is no list of open submissions"):
        settle_all(runs[:1], Slurm(), held=runs[0].path)  # about to be submitted again


def test_a_refused_job_leaves_nothing_and_is_not_looked_for(slurm: FakeSlurm) -> None:
    slurm.put("sbatch", "echo 'sbatch: error: Batch job submission failed: Invalid account' >&2\n"
                        "exit 1\n")
    with pytest.raises(UserError, match="refuses the train job: Invalid account.*account=''"):
        submit_training()
    run = RunDir("runs/art")
    assert slurm.calls() == ["sbatch"]
    assert not run.pending.exists()
    assert list(run.slurm.glob("submitit/*")) == []


@pytest.mark.parametrize(("said", "refusal"), [
    ("sbatch: error: Batch job submission failed: Requested node configuration is not available",
     True),
    ("sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect "
     "failure)", True),
    ("sbatch: error: invalid partition specified: fast\nsbatch: error: Batch job submission failed:"
     " Invalid partition name specified", True),
    ("sbatch: unrecognized option '--fast'", True),
    ("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation", False),
    ("sbatch: error: Batch job submission failed: Zero Bytes were transmitted or received", False),
    ("sbatch: error: Batch job submission failed: Unexpected message received", False)])
def test_no_answer_is_told_from_a_refusal(said: str, refusal: bool) -> None:
    assert is_refusal(Completed(1, "", said)) == refusal


def test_a_squeue_that_does_not_answer_in_time_does_not_cost_the_table(
        slurm: FakeSlurm, monkeypatch: pytest.MonkeyPatch) -> None:
    submit_training()
    slurm.put("squeue", "sleep 20\n")
    monkeypatch.setattr("blip_art.cluster.slurm.TIMEOUT_S", 1.5)
    early: list[str] = []
    began = time.monotonic()
    rows, notes = survey([RunDir("runs/art")], Slurm(),
                         lambda rows: early.extend(row.run for row in rows))
    assert time.monotonic() - began < 10
    assert [row.run for row in rows] == early == ["runs/art"]
    assert "squeue gave no answer in 2 s" in notes[0]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_slow_squeue_is_named_and_only_a_terminal_sees_what_lies_on_disk(
        slurm: FakeSlurm, repo: Path, terminal: bool) -> None:
    submit_training()
    slurm.put("squeue", "sleep 2\ncat queue\n")
    done = show_status(repo, terminal)
    assert done.stdout.count("runs/art") == (2 if terminal else 1)
    assert "asking Slurm …" in (done.stdout if terminal else done.stderr)
    assert ("asking Slurm …" in done.stdout) == terminal


@pytest.mark.parametrize("terminal", [True, False])
def test_an_open_submission_does_not_hold_back_what_lies_on_disk(
        slurm: FakeSlurm, repo: Path, terminal: bool) -> None:
    slurm.put("squeue", SILENT)
    slurm.put("sbatch", SUBMIT + LOST)
    with pytest.raises(Unknown):
        submit_training()
    slurm.put("squeue", "sleep 2\ncat queue\n")
    done = show_status(repo, terminal)
    said = done.stdout + done.stderr
    assert said.count("asking Slurm …") == 1
    assert "train job 11 is cancelled" in said
    early = "as the run folders have it"
    assert said.count(early) == terminal
    assert not terminal or said.index(early) < said.index("asking Slurm …")


def show_status(repo: Path, terminal: bool) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, str(repo / "launch.py"), "status"]
    if terminal:
        words = ["script", "--quiet", "--return", "--command", " ".join(words), "/dev/null"]
    return subprocess.run(words, text=True, capture_output=True, check=True, timeout=60,
                          stdin=subprocess.DEVNULL)
