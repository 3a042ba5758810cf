"""What status and report say of a run is so, and is the same: one test for each way it was not.

    python -m pytest tests/test_decision.py
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blip_art.cluster import reasons
from blip_art.cluster.batch import slurm_place
from blip_art.cluster.jobs import Job
from blip_art.cluster.on_slurm import _sweep_stages
from blip_art.cluster.record import Submitted, record_jobs
from blip_art.cluster.resume import ONLY_REPORT, job_to_repeat
from blip_art.cluster.rows import Row, shown
from blip_art.cluster.site import Site
from blip_art.cluster.slurm import Completed, Slurm
from blip_art.cluster.status import find_runs, survey
from blip_art.cluster.submit import _hint
from blip_art.cluster.sweep import Member, Sweep
from blip_art.errors import UserError
from blip_art.failure import run_note, write_killed
from blip_art.files import RunDir, read_json, write_json, write_jsonl, write_text
from blip_art.report.tables import read_runs
from blip_art.score.follow import until_state_ends
from blip_art.score.lock import taken
from tests.conftest import REPO
from tests.report_runs import html_of, predict, scores_of
from tests.report_runs import make_run as make_scored_run

STOPPED = "by a signal; --resume goes on"
KILLED = "rank 0 was ended by SIGKILL (often: not enough memory)"


def slurm_with(queue: str = "", accounts: str | None = None) -> Slurm:
    """A Slurm that answers so; without `accounts` it keeps none."""
    said = {"squeue": Completed(0, queue),
            "sacct": Completed(0, accounts) if accounts is not None else Completed(1, "", "no")}
    return Slurm(lambda argv: said[argv[0]])


def in_queue(job: str, state: str, used: str = "10:00", reason: str = "None") -> str:
    return f"{job}|{job}|{state}|{reason}|{used}|1:00:00|N/A|v100-1|gpu|(null)\n"


def account(job: str, state: str, exit_code: str, starts: int = 1) -> str:
    return f"{job}|{state}|{exit_code}|60|cpu=8|a|b|n\n" * starts


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run of job 12, which has trained an epoch."""
    run = RunDir(tmp_path / "art")
    write_jsonl(run.train_log, [{"epoch": 0, "loss": 2.0}])
    submit(run, "train", "12")
    return run


def submit(run: RunDir, stage: str, job: str) -> None:
    record_jobs(run, [Submitted(stage, job, submitted="2024-11-24T02:00:00+0000",
                                command=("train", "a.yaml"))])


def say(run: RunDir, state: str, why: str = "", job: str = "12", start: int = 0,
        age_s: float = 0.0) -> None:
    """What job 12 wrote to state.json, so long ago."""
    write_json(run.state, {"state": state, "why": why, "job": job, "start": start})
    os.utime(run.state, (time.time() - age_s,) * 2)


def row_of(run: RunDir, slurm: Slurm) -> Row:
    return survey([run], slurm)[0][0]


def status(run: RunDir, slurm: Slurm) -> tuple[str, str]:
    row = row_of(run, slurm)
    return row.state, row.why


def report(run: RunDir) -> tuple[str, str]:
    [read] = read_runs([run])
    return read.state, read.why


# A failure and a living job ------------------------------------------------------------------


def test_a_training_that_failed_this_moment_is_not_running(run: RunDir) -> None:
    say(run, "failed", "a bug", age_s=5)
    assert status(run, slurm_with(in_queue("12", "RUNNING"))) == (
        "failed", "a bug; job 12 has not ended yet")


def test_a_training_that_runs_again_is_not_what_its_last_start_was(run: RunDir) -> None:
    say(run, "failed", "a bug", age_s=3600)
    assert row_of(run, slurm_with(in_queue("12", "RUNNING"))).state == "running"


def test_a_failure_is_not_hidden_by_the_jobs_that_score_what_there_is(run: RunDir) -> None:
    say(run, "failed", "a bug")
    submit(run, "collect", "14")
    assert status(run, slurm_with(in_queue("14", "PENDING"), account("12", "FAILED", "1:0"))) == (
        "failed", "a bug")


def test_a_run_that_was_submitted_again_has_not_failed(run: RunDir) -> None:
    say(run, "failed", "a bug")
    submit(run, "train", "15")
    assert report(run) == ("submitted", "job 15; before it: failed; a bug")
    assert until_state_ends(run)() is None
    say(run, "failed", "a bug", job="15")
    assert report(run) == ("failed", "a bug")
    assert until_state_ends(run)()


# A start that could not say how it ended -----------------------------------------------------


def test_a_resumed_run_that_dies_at_its_start_has_failed(run: RunDir) -> None:
    say(run, "stopped", STOPPED)
    submit(run, "train", "15")
    died = slurm_with("", account("12", "FAILED", "2:0") + account("15", "FAILED", "1:0"))
    assert status(run, died) == ("failed", "job 15: exit code 1")


def test_so_has_a_job_that_was_queued_again_and_dies_at_its_second_start(run: RunDir) -> None:
    say(run, "stopped", STOPPED)
    assert row_of(run, slurm_with("", account("12", "FAILED", "1:0"))).state == "stopped"
    assert status(run, slurm_with("", account("12", "FAILED", "1:0", starts=2))) == (
        "failed", "job 12: exit code 1")


def test_the_batch_scripts_note_says_so_without_slurm(run: RunDir) -> None:
    say(run, "stopped", STOPPED)
    write_text(run.job_ended("12"), "137 1\n")
    how = ("failed", "job 12: ended by SIGKILL (often: not enough memory)")
    assert status(run, slurm_with()) == report(run) == how


def test_what_a_command_says_before_it_opens_the_run_is_the_reason(tmp_path: Path) -> None:
    """As one that finds no GPU, or no tokenizer."""
    run = RunDir(tmp_path / "run")
    say(run, "stopped", STOPPED, job="6")
    command = "import sys; print('error: no GPU here'); sys.exit(2)"
    done = run_task(tmp_path, command)
    assert done.returncode == 2
    assert read_json(run.state) == {"state": "failed", "why": "no GPU here", "job": "7", "start": 1}
    write_json(run.state, {"state": "finished"})
    run_task(tmp_path, command)
    assert read_json(run.state) == {"state": "finished"}
    write_json(run.state, {"state": "running"})
    with taken(run.training_lock):
        run_task(tmp_path, command)
    assert read_json(run.state) == {"state": "running"}


def run_task(folder: Path, command: str) -> subprocess.CompletedProcess[bytes]:
    """The only task of a job's second start."""
    job = Job("train", (sys.executable, "-c", command, "blip_art.train", "--run", "run"),
              cwd=str(folder), log="log", layout="gpu")
    step = (f"from blip_art.cluster.allocation import run_in_allocation; "
            f"from blip_art.cluster.jobs import Job; run_in_allocation({job!r}, 'notes')")
    return subprocess.run(
        [sys.executable, "-c", step], cwd=folder, check=False, timeout=60, env={
            "PYTHONPATH": str(REPO), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a",
            "SLURM_RESTART_COUNT": "1"})


# Killed --------------------------------------------------------------------------------------


def test_a_rank_that_is_killed_before_it_opens_the_run_is_recorded(run: RunDir) -> None:
    say(run, "stopped", STOPPED)
    with run_note(["blip_art.train", "a.yaml", "--run", str(run.path), "--resume"]) as note:
        assert write_killed(note, 0, signal.SIGKILL) == KILLED
    assert read_json(run.state)["why"] == KILLED


def test_a_killed_rank_is_the_same_everywhere(run: RunDir) -> None:
    say(run, "failed", KILLED)
    for slurm in (slurm_with(), slurm_with("", account("12", "FAILED", "9:0"))):
        assert status(run, slurm) == report(run) == ("failed", KILLED)


def test_what_the_accounts_call_exit_code_9_is_a_kill(run: RunDir) -> None:
    say(run, "running")
    assert status(run, slurm_with("", account("12", "FAILED", "9:0"))) == (
        "failed", "job 12: ended by SIGKILL (often: not enough memory)")


def test_a_step_that_was_out_of_memory_says_what_to_raise(run: RunDir) -> None:
    slurm = slurm_with("", account("12", "OUT_OF_MEMORY", "0:125"))
    say(run, "running")
    assert status(run, slurm)[1].startswith("job 12: out of memory: raise mem_gb")
    say(run, "failed", KILLED)
    assert status(run, slurm)[1].startswith(f"{KILLED}; job 12: out of memory: raise mem_gb")


# Restarts ------------------------------------------------------------------------------------


def test_the_limit_of_restarts_is_said(run: RunDir) -> None:
    say(run, "stopped", STOPPED, start=20)
    write_text(run.job_ended("12"), "130 20\nlimit of restarts reached (20, max_requeues)\n")
    how = ("stopped", "limit of restarts reached (20, max_requeues)")
    for slurm in (slurm_with(), slurm_with("", account("12", "FAILED", "2:0", starts=21))):
        assert status(run, slurm) == report(run) == how


def test_captions_that_are_given_up_say_why(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "captions")
    write_text(run.config, "")
    submit(run, "predict", "12")
    write_text(run.job_ended("12"), "1 2\nstopped 3 times in a row\n")
    how = ("failed", "job 12: exit code 1; stopped 3 times in a row")
    assert status(run, slurm_with()) == report(run) == how


def test_the_element_of_an_array_has_its_note_in_the_sweeps_folder(tmp_path: Path) -> None:
    run, slurm = RunDir(tmp_path / "six" / "seed=1"), tmp_path / "six" / "slurm"
    say(run, "running", job="9_3")
    record_jobs(run, [Submitted("train", "9_3", batch_log=str(slurm / "submitit/9_3_0_log.out"))])
    write_text(slurm / "ended_9_3", "1 0\n")
    assert status(run, slurm_with()) == report(run) == ("failed", "job 9_3: exit code 1")


def test_a_job_that_waits_to_start_again_is_pending(run: RunDir) -> None:
    say(run, "stopped", STOPPED)
    write_text(run.job_waits("12"), "130 0\n")
    assert report(run)[0] == "pending"


# Reports -------------------------------------------------------------------------------------


@pytest.mark.parametrize("accounts", [None, account("30", "COMPLETED", "0:0")])
def test_a_report_that_was_made_has_not_failed(tmp_path: Path, accounts: str | None) -> None:
    run = RunDir(tmp_path / "compared")
    submit(run, "collect", "30")
    write_text(run.path / "index.html", "<html>")
    row = row_of(run, slurm_with("", accounts))
    assert (row.state, row.why) == ("finished", f"report: {run.path}/index.html")
    assert job_to_repeat(run, []) == ONLY_REPORT
    assert row_of(run, slurm_with("", account("30", "FAILED", "1:0"))).state == "failed"
    assert shown([row, row]).splitlines()[-1].startswith("0 runs")


def test_captions_of_other_weights_are_finished_when_their_job_is(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "coco")
    submit(run, "predict", "30")
    assert row_of(run, slurm_with("", account("30", "COMPLETED", "0:0"))).state == "finished"


def test_the_report_of_a_sweep_is_the_job_of_none_of_its_runs(tmp_path: Path) -> None:
    runs = [RunDir(tmp_path / "six" / f"seed={seed}") for seed in (1, 2)]
    members = [Member(run, ()) for run in runs]
    stages = _sweep_stages(argparse.Namespace(nodes=1), Sweep("six.yaml", "six", "a.yaml", 0, ()),
                           slurm_place(Site(), tmp_path), members, members[1:], [],
                           tmp_path / "six" / "report")
    [report_of_all] = stages[-1].runs
    assert (stages[-1].name, report_of_all.path) == ("collect", tmp_path / "six")
    for run in runs:
        write_json(run.state, {"state": "finished"})
    submit(report_of_all, "collect", "30")
    found = find_runs([str(tmp_path / "six")])
    rows, _ = survey(found, slurm_with(in_queue("30", "PENDING", reason="Resources")))
    assert [row.state for row in rows] == ["pending", "finished", "finished"]
    assert rows[0].why == "report: waits for free nodes (Resources)"
    assert "2 runs: 2 finished" in shown(rows)


# Scores --------------------------------------------------------------------------------------


def test_the_best_epoch_names_its_rule(tmp_path: Path) -> None:
    rows = []
    for rule, value in (("spice", 0.4), ("cider+bleu_4", 0.55)):
        run = make_scored_run(tmp_path / rule, (0.1, 0.5))
        write_json(run.best, {"epoch": 1, "rule": rule, "value": value})
        rows.append(row_of(run, slurm_with()))
        assert f"best: highest {rule} on val" in shown(rows[-1:])
        assert f" {value:.3f} @01\n" in shown(rows[-1:])
    assert "0.400 @01 by spice" in shown(rows)
    assert "0.550 @01 by cider+bleu_4" in shown(rows)


def test_scores_of_test_are_shown_by_status_and_report(tmp_path: Path) -> None:
    run = make_scored_run(tmp_path / "art", (0.1, 0.5, 0.2))
    write_json(run.best, {"epoch": 1, "rule": "spice", "value": 0.4})
    assert "test:" not in shown([row_of(run, slurm_with())])
    predict(run, 0, "test")
    write_json(run.scores("test", 0), scores_of(0.4, 0, "test"))
    assert "0.320 @00" in shown([row_of(run, slurm_with())])
    html = html_of(run)
    assert "on test CIDEr 0.280, SPICE 0.320 (epoch 0)" in html
    assert "<td>1<small>scores: epoch 0</small></td>" in html
    predict(run, 1, "test")
    write_json(run.scores("test", 1), scores_of(0.3, 1, "test"))
    assert "0.240 @01" in shown([row_of(run, slurm_with())])
    assert "SPICE 0.240 (epoch 1)" in html_of(run)


# Words ---------------------------------------------------------------------------------------


def test_a_log_that_could_not_be_opened_is_no_signal() -> None:
    assert reasons.ended("FAILED", "0:53").startswith("Slurm could not open its log")


@pytest.mark.parametrize("gap", " _")
def test_an_ordinary_wait_does_not_alarm(gap: str) -> None:
    reason = ("Nodes required for job are DOWN, DRAINED or reserved for jobs in higher priority "
              "partitions").replace(" ", gap)
    assert reasons.waiting(reason).startswith("waits for free nodes (some may be down")
    assert "DRAINED" not in reasons.waiting(reason)


def test_a_limit_of_the_qos_is_not_the_accounts_name() -> None:
    reason = ("Job violates accounting/QOS policy (job submit limit, user's size and/or time "
              "limits)")
    hint = _hint(reason, Site(account="art", qos="short"))
    assert "'sacctmgr show qos short'" in hint
    assert "account=" not in hint
    assert "account='art'" in _hint("Invalid account or account/partition", Site(account="art"))


def test_a_training_that_cannot_lock_its_folder_is_not_said_to_score(tmp_path: Path) -> None:
    write_text(tmp_path / "file", "")
    with pytest.raises(UserError, match="folder that you can write to"), taken(
            tmp_path / "file" / ".training"):
        pass
