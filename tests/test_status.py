"""The table of runs: from the folders first, from Slurm where it answers.

    python -m pytest tests/test_status.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from blip_art.cluster.record import Submitted, record_jobs
from blip_art.cluster.rows import Row, as_json, shown
from blip_art.cluster.slurm import (
    Completed,
    ControllerDown,
    NoAccounting,
    Slurm,
    SlurmAbsent,
    SlurmError,
    clean_environment,
    seconds_of,
)
from blip_art.cluster.status import find_runs, survey
from blip_art.cluster.table import table
from blip_art.describe import duration
from blip_art.errors import UserError
from blip_art.files import RunDir, read_jsonl, write_json, write_jsonl, write_text
from blip_art.score.lock import taken


def answers(**said: Completed | Exception) -> Slurm:
    """A Slurm whose commands say these things; one that is not named is not installed."""
    def door(argv: Sequence[str]) -> Completed:
        found = said.get(argv[0], FileNotFoundError(2, "No such file or directory"))
        if isinstance(found, Exception):
            raise found
        return found
    return Slurm(door)


def make_run(folder: Path, state: str = "", epochs: int = 0, job: str = "") -> RunDir:
    run = RunDir(folder)
    write_text(run.config, "train:\n  epochs: 10\n")
    if state:
        write_json(run.state, {"state": state, "why": "", "epochs": 10})
    write_jsonl(run.train_log, [{"epoch": e, "loss": 3 - e / 10, "seconds": 900.0}
                                for e in range(epochs)])
    for epoch in range(epochs):
        write_json(run.predictions("val", epoch), [])
        write_json(run.scores("val", epoch), {
            "pictures": 2, "metrics": {"CIDEr": 1.0, "SPICE": (20 + epoch) / 100}, "per_image": {}})
    if epochs:
        write_json(run.best, {"epoch": 0, "rule": "spice", "value": .2})
    if job:
        record_jobs(run, [Submitted("train", job, gpus=4, submitted="2024-11-24T02:00:00+0000")])
    return run


def queue_line(job: str, state: str, reason: str = "None", left: str = "1:00:00") -> str:
    return f"{job}|{job}|{state}|{reason}|10:00|{left}|N/A|v100-1|gpu|(null)\n"


def row_of(run: RunDir, slurm: Slurm) -> Row:
    return survey([run], slurm)[0][0]


NO_ACCOUNTS = Completed(1, "", "sacct: error: Slurm accounting storage is disabled\n")


def test_a_run_without_slurm_is_read_from_its_folder(tmp_path: Path) -> None:
    rows, notes = survey([make_run(tmp_path / "art", "finished", 3)], answers())
    assert notes == []
    assert rows[0] == Row(str(tmp_path / "art"), "finished", epochs_done=3, epochs=10, loss=2.8,
                          spice=.22, best_spice=.2, best_epoch=0, best_rule="spice", best_value=.2,
                          gpu_hours=None, gpu_hours_exact=False)


def test_the_queue_tells_why_a_run_waits(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", job="12")
    slurm = answers(squeue=Completed(0, queue_line("12", "PENDING", "Resources")),
                    sacct=NO_ACCOUNTS)
    row = row_of(run, slurm)
    assert (row.state, row.why) == ("pending", "waits for free nodes (Resources)")


def test_a_job_that_waits_for_another_names_its_stage(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", "finished", job="12")
    record_jobs(run, [Submitted("score", "13")])
    waits = "13|13|PENDING|Dependency|0:00|1:00:00|N/A||cpu|afterok:12(unfulfilled)\n"
    row = row_of(run, answers(squeue=Completed(0, waits), sacct=NO_ACCOUNTS))
    assert (row.state, row.why) == ("finished", "score pending: waits for train (job 12)")


def test_training_decides_the_state_of_a_run_that_is_also_scored(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", "running", 2, job="12")
    record_jobs(run, [Submitted("follow", "13")])
    queue = queue_line("13", "RUNNING") + queue_line("12", "RUNNING")
    row = row_of(run, answers(squeue=Completed(0, queue), sacct=NO_ACCOUNTS))
    assert (row.state, row.why) == ("running", "job 12 on v100-1, 1 h 0 min left")
    assert row.jobs == ("12", "13")


@pytest.mark.parametrize(("account", "state", "word"), [
    ("TIMEOUT|0:0", "failed", "time limit"), ("OUT_OF_MEMORY|0:125", "failed", "mem_gb"),
    ("NODE_FAIL|1:0", "failed", "node failed"), ("FAILED|2:0", "failed", "exit code 2"),
    ("FAILED|0:9", "failed", "ended by SIGKILL"), ("COMPLETED|0:0", "lost", "without a word"),
    ("CANCELLED by 1000|0:0", "cancelled", "resume")])
def test_a_run_that_says_running_but_has_no_job_is_told_by_accounting(
        tmp_path: Path, account: str, state: str, word: str) -> None:
    run = make_run(tmp_path / "art", "running", 1, job="12")
    sacct = Completed(0, f"12|{account}|3600|cpu=8,gres/gpu=4|Unknown|Unknown|v100-1\n")
    row = row_of(run, answers(squeue=Completed(0), sacct=sacct))
    assert row.state == state
    assert word in row.why


TRAIN = """
import sys, time
from pathlib import Path
from blip_art.score.lock import taken
with taken(Path(sys.argv[1])) as ours:
    print(ours, flush=True)
    time.sleep(600)
"""


def test_a_training_whose_process_was_killed_is_lost_whatever_its_state_says(
        tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", "running", 1)
    process = subprocess.Popen([sys.executable, "-c", TRAIN, str(run.training_lock)],
                               stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "True\n"
    who = f"{os.uname().nodename}:{process.pid}"
    alive = row_of(run, answers())
    process.kill()
    process.communicate()
    dead = row_of(run, answers())
    assert (alive.state, alive.why) == ("running", f"process {who}")
    assert dead.state == "lost"
    assert f"its process {who} is gone" in dead.why
    write_json(run.state, {"state": "failed", "why": "a bug"})
    assert row_of(run, answers()).why == "a bug"


@pytest.mark.parametrize(("silent_min", "state", "why"), [
    (5, "running", ""), (30, "running", "has written nothing for 30 min"),
    (90, "lost", "has written nothing for 1 h 30 min, and no process of it is known")])
def test_a_training_on_another_machine_is_told_by_its_silence(
        tmp_path: Path, silent_min: int, state: str, why: str) -> None:
    run = make_run(tmp_path / "art", "running", 1)
    write_json(run.training_lock, {"host": "elsewhere", "pid": 1})
    for path in (run.state, run.train_log):
        os.utime(path, (time.time() - 60 * silent_min,) * 2)
    row = row_of(run, answers())
    assert row.state == state
    assert row.why.startswith(why)
    assert bool(why) or not row.why
    write_json(run.progress, {})  # what a training writes every 30 s
    assert row_of(run, answers()).state == "running"


def test_a_local_training_of_a_run_that_was_submitted_before_is_running(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", "running", 1, job="12")
    gone = answers(squeue=Completed(0), sacct=Completed(0, "12|TIMEOUT|0:0|60|cpu=8|a|b|n\n"))
    with taken(run.training_lock):
        assert row_of(run, gone).state == "running"
    assert row_of(run, gone).state == "failed"


def test_gpu_hours_add_up_over_restarts(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", "stopped", 1, job="12")
    sacct = Completed(0, "12|PREEMPTED|0:0|3600|gres/gpu:v100=4,gres/gpu=4|a|b|n\n"
                         "12|TIMEOUT|0:0|1800|gres/gpu:v100=4,gres/gpu=4|a|b|n\n")
    row = row_of(run, answers(squeue=Completed(0), sacct=sacct))
    assert (row.gpu_hours, row.gpu_hours_exact) == (6.0, True)


def test_a_site_that_does_not_account_for_gpus_still_has_hours(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", "finished", 1, job="12")
    sacct = Completed(0, "12|COMPLETED|0:0|3600|cpu=8|a|b|n\n")
    assert row_of(run, answers(squeue=Completed(0), sacct=sacct)).gpu_hours == 4.0


def test_without_sacct_gpu_hours_are_reckoned_and_marked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", "finished", 4, job="12")
    rows, notes = survey([run], answers(squeue=Completed(0), sacct=NO_ACCOUNTS))
    assert (rows[0].gpu_hours, rows[0].gpu_hours_exact) == (4.0, False)
    assert "~4.00" in shown(rows)
    assert "accounting storage is disabled" in notes[0]


def test_each_epoch_is_reckoned_by_the_gpus_that_it_had(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", "finished", 4, job="12")  # of 4 GPUs
    lines = read_jsonl(run.train_log)
    write_jsonl(run.train_log, [{**lines[0], "ranks": 1}, {**lines[1], "ranks": 8}, lines[2],
                                {**lines[3], "ranks": "two"}])
    assert row_of(run, answers(squeue=Completed(0), sacct=NO_ACCOUNTS)).gpu_hours == 4.25
    local = make_run(tmp_path / "local", "finished", 2)
    write_jsonl(local.train_log, [{**line, "ranks": 2, "gpu_memory_gb": 1.5}
                                  for line in lines[:2]])
    assert row_of(local, answers()).gpu_hours == 1.0


def test_jobs_that_accounting_has_forgotten_are_reckoned_too(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", "finished", 4, job="12")
    row = row_of(run, answers(squeue=Completed(0), sacct=Completed(0)))
    assert (row.gpu_hours, row.gpu_hours_exact) == (4.0, False)


def test_a_dead_controller_leaves_what_the_folders_say(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", "running", 1, job="12")
    dead = Completed(1, "", "slurm_load_jobs error: Unable to contact slurm controller "
                            "(connect failure)\n")
    rows, notes = survey([run], answers(squeue=dead))
    assert rows[0].state == "running"
    assert "controller does not answer" in notes[0]


def test_garbage_from_squeue_is_passed_over(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art", job="12")
    queue = Completed(0, "*** maintenance on Monday ***\n|||\n" + queue_line("12", "RUNNING"))
    assert row_of(run, answers(squeue=queue, sacct=Completed(0, "what?\n1|2\n"))).state == "running"


def test_two_hundred_runs_are_two_calls(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"run_{n}", job=f"7_{n}") for n in range(200)]
    queue = "".join(queue_line(f"7_{n}", "RUNNING") for n in range(200))
    slurm = answers(squeue=Completed(0, queue), sacct=Completed(0))
    rows, _ = survey(runs, slurm)
    assert {row.state for row in rows} == {"running"}
    assert [call[0] for call in slurm.calls] == ["squeue", "sacct"]
    assert "--jobs=7" in slurm.calls[0]


def test_one_broken_folder_does_not_hide_the_others(tmp_path: Path) -> None:
    make_run(tmp_path / "a", "finished")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "state.json").write_text("{half")
    rows, _ = survey(find_runs([str(tmp_path)]), answers())
    assert [row.state for row in rows] == ["finished", "unreadable"]
    assert "not valid JSON" in rows[1].why


@pytest.mark.parametrize(("name", "content"), [
    ("train.jsonl", "[1]"), ("train.jsonl", "{"), ("best.json", "[]"), ("slurm/jobs.json", "[1]"),
    ("scores/val_00.json", "[]"), ("manifest.json", "{"),
    ("manifest.json", '{"ranks": "four"}')])
def test_a_damaged_file_of_a_run_is_named_in_its_row(
        tmp_path: Path, name: str, content: str) -> None:
    run = make_run(tmp_path / "art", "finished", 1)
    write_jsonl(run.train_log, [{"loss": "high", "gpu_memory_gb": 1.5, "seconds": None}])
    write_json(run.manifest, {"ranks": 4})
    row = row_of(run, answers())
    assert (row.state, row.loss, row.gpu_hours) == ("finished", None, 0.0)
    write_text(run.path / name, content)
    row = row_of(run, answers())
    assert row.state == "unreadable"
    assert name in row.why


def test_runs_are_found_below_sweeps_in_order_of_number(tmp_path: Path) -> None:
    for name in ("sweep/lr_10", "sweep/lr_9", "art"):
        run = make_run(tmp_path / name, "finished")
        make_run(run.code / "runs" / "inside", "finished")  # a snapshot may hold anything
    found = [str(run.path.relative_to(tmp_path)) for run in find_runs([str(tmp_path)])]
    assert found == ["art", "sweep/lr_9", "sweep/lr_10"]


def test_a_folder_without_runs_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run in"):
        find_runs([str(tmp_path)])
    with pytest.raises(UserError, match="no run folder at"):
        find_runs([str(tmp_path / "none")])
    assert shown(survey(find_runs([str(tmp_path)], must=False), answers())[0]).startswith("no runs")


def test_a_queued_run_that_was_cancelled_stays_cancelled_without_accounting(tmp_path: Path) -> None:
    from blip_art.cluster.control import cancel

    run = make_run(tmp_path / "art", job="12")
    queue = Completed(0, queue_line("12", "PENDING", "Priority"))
    slurm = answers(squeue=queue, scancel=Completed(0))
    assert cancel([run], slurm) == [f"{run.path}: cancelled train job 12 (pending)"]
    assert slurm.calls[1:] == [("scancel", "12")]
    gone = answers(squeue=Completed(1, "", "slurm_load_jobs error: Invalid job id specified"),
                   sacct=NO_ACCOUNTS)
    assert row_of(run, gone).state == "cancelled"
    assert cancel([run], gone) == [f"{run.path}: no job of it is queued or running"]


@pytest.mark.parametrize(("user", "cluster", "state"), [
    ("", "", "running"), ("me", "here", "running"), ("you", "here", "stopped"),
    ("me", "far", "stopped")])
def test_a_job_that_is_not_the_runs_own_is_not_shown_as_it(tmp_path: Path, user: str, cluster: str,
                                                           state: str) -> None:
    run = make_run(tmp_path / "art", "stopped", 1)
    os.utime(run.state, (time.time() - 3600,) * 2)  # by an earlier start
    record_jobs(run, [Submitted("train", "12", gpus=4, user=user, cluster=cluster,
                                submitted="2024-11-24T02:00:00+0000")])
    queue = queue_line("12", "RUNNING").strip() + "|me|train-art\n"
    rows, notes = survey([run], answers(
        squeue=Completed(0, queue), scontrol=Completed(0, "ClusterName             = here\n"),
        sacct=Completed(0, "12|RUNNING|0:0|7200|gres/gpu=4|a|b|n|me\n")))
    assert (rows[0].state, rows[0].gpu_hours_exact) == (state, state == "running")
    assert bool(notes) == (cluster == "far")


def test_failures_of_slurm_are_told_apart() -> None:
    refused = Completed(1, "", "sinfo: error: something odd\n")
    with pytest.raises(SlurmAbsent, match="no command squeue"):
        answers().squeue(["1"])
    with pytest.raises(ControllerDown, match="no answer in 60 s"):
        answers(squeue=subprocess.TimeoutExpired("squeue", 60)).squeue(["1"])
    with pytest.raises(NoAccounting, match="has_sacct"):
        answers(sacct=NO_ACCOUNTS).sacct(["1"])
    with pytest.raises(SlurmError, match="sinfo failed: something odd"):
        answers(sinfo=refused).sinfo()


def test_variables_of_an_outer_job_do_not_reach_slurm() -> None:
    leaked = {"SLURM_JOB_ID": "1", "SQUEUE_FORMAT": "%i", "SLURM_CONF": "/etc/s.conf", "HOME": "/h"}
    assert clean_environment(leaked) == {"SLURM_CONF": "/etc/s.conf", "HOME": "/h", "LC_ALL": "C"}


@pytest.mark.parametrize(("text", "seconds"), [
    ("0:07", 7), ("1:02", 62), ("1:00:00", 3600), ("2-03:00:01", 183601), ("UNLIMITED", -1)])
def test_slurms_times_are_seconds(text: str, seconds: int) -> None:
    assert seconds_of(text) == seconds


def test_a_table_fits_the_terminal_and_is_whole_for_a_program() -> None:
    rows = [["runs/a-sweep-with-a-very-long-name/seed_17", "pending", "waits for " + "x" * 80]]
    narrow = table(["run", "state", "why"], rows, width=50)
    assert max(map(len, narrow.splitlines())) == 50
    assert "seed_17" in narrow
    assert "x" * 80 in table(["run", "state", "why"], rows)


def test_json_has_every_number(tmp_path: Path) -> None:
    rows, notes = survey([make_run(tmp_path / "art", "finished", 2)], answers())
    assert json.loads(as_json(rows, notes))["runs"][0]["spice"] == .21


def test_durations_are_read_easily() -> None:
    assert [duration(s) for s in (40, 300, 7500, 270000)] == [
        "40 s", "5 min", "2 h 5 min", "3 d 3 h"]
