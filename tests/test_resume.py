"""'launch.py resume' submits what a run lacks, in the folder that was named, and nothing else.

    python -m pytest tests/test_resume.py
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blip_art.cluster.control import Live, cancel, jobs_in_queue
from blip_art.cluster.ownership import user_name
from blip_art.cluster.record import Submitted, read_jobs, record_jobs
from blip_art.cluster.resume import (
    NOT_SUBMITTED,
    Changes,
    job_to_repeat,
    resume,
    words_to_repeat,
)
from blip_art.cluster.slurm import Completed, QueueRow, Slurm
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_text
from blip_art.work import cancelled_note

TRAIN = ("train", "a.yaml", "train.lr=1e-4", "--run", "runs/a", "--cluster", "slurm", "--site",
         "s.yaml", "--processes", "2", "--partition=long", "--no-score")
NOTE = "import json, sys; open('said', 'a').write(json.dumps(sys.argv[1:]) + '\\n')"
NOBODY = Slurm(lambda argv: Completed(0))


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that was submitted with scoring and has been trained, but not scored."""
    return submitted(RunDir(tmp_path / "run"))


def submitted(run: RunDir, **changes: Any) -> RunDir:
    record_jobs(run, [replace(Submitted(
        stage, job_id, command=TRAIN, cwd=str(run.path.parent), site="/s.yaml",
        run=str(run.path)), **changes)
        for stage, job_id in (("train", "1"), ("follow", "2"), ("score", "3"))])
    write_json(run.state, {"state": "finished"})
    write_text(run.frozen_config, "name: a\n")
    write_json(run.predictions("val", 0), [])
    return run


def queue(rows: Sequence[str], cluster: str = "blip", account: str = "") -> Slurm:
    """A Slurm with these lines of squeue."""
    said = {"squeue": Completed(0, "".join(f"{row}\n" for row in rows)),
            "scontrol": Completed(0, f"ClusterName             = {cluster}\n"),
            "sacct": Completed(0, account), "scancel": Completed(0)}
    return Slurm(lambda argv: said[argv[0]])


def line(job: str, state: str, user: str = "", name: str = "train-run") -> str:
    return (f"{job}|{job}|{state}|None|10:00|1:00:00|N/A|v100-1|gpu|(null)|"
            f"{user or user_name()}|{name}")


def launched(runs: Sequence[RunDir], slurm: Slurm = NOBODY, **changes: Any) -> list[list[str]]:
    """What launch.py would be called with."""
    said = Path("said")
    said.unlink(missing_ok=True)
    assert resume(runs, slurm, Changes(**changes), (sys.executable, "-c", NOTE)) == 0
    return [json.loads(one) for one in said.read_text().splitlines()] if said.exists() else []


def live(run: RunDir, stage: str) -> Live:
    row = QueueRow("3", "3", "PENDING", "Priority", 0, -1, "N/A", "", "cpu", "")
    return run, Submitted(stage, "3"), row


def test_what_is_trained_but_not_scored_is_scored(run: RunDir) -> None:
    job = job_to_repeat(run, [])
    assert isinstance(job, Submitted)
    assert words_to_repeat(run, job, Changes())[:3] == ("score", "--run", str(run.path))
    assert job_to_repeat(run, [live(run, "score")]) == "score job 3 is pending, nothing to do"
    write_json(run.scores("val", 0), {})
    assert job_to_repeat(run, []) == "finished and scored, nothing to do"


def test_what_is_not_trained_is_trained_as_it_was_submitted(run: RunDir) -> None:
    write_json(run.state, {"state": "stopped"})
    job = job_to_repeat(run, [])
    assert isinstance(job, Submitted)
    words = words_to_repeat(run, job, Changes(time="90"))
    assert " ".join(words) == (f"train {run.frozen_config} --run {run.path} --gpus 2 --no-score "
                               "--cluster slurm --site /s.yaml --partition long --time 90")
    assert job_to_repeat(run, [live(run, "train")]) == "train job 3 is pending, nothing to do"
    # How it was submitted says nothing of the code that is wanted now.
    job = replace(job, command=(*TRAIN, "--code", "frozen"))
    assert words_to_repeat(run, job, Changes(time="90")) == words
    assert words_to_repeat(run, job, Changes(code="frozen"))[-2:] == ("--code", "frozen")
    # Another profile has partitions of its own.
    assert "long" not in words_to_repeat(run, job, Changes(site="/t.yaml"))


def test_captions_that_were_cancelled_are_made(run: RunDir) -> None:
    write_json(run.scores("val", 0), {})
    write_text(run.config, "name: a\n")
    eval_test = ("eval", "a.yaml", "--split", "test", "--cluster", "slurm", "generate.num_beams=5")
    record_jobs(run, [Submitted("predict", "4", command=eval_test)])
    assert job_to_repeat(run, []) == "finished and scored, nothing to do"
    write_text(cancelled_note(run), "4\n")
    job = job_to_repeat(run, [])
    assert isinstance(job, Submitted)
    assert words_to_repeat(run, job, Changes()) == (
        "eval", "generate.num_beams=5", "--run", str(run.path), "--split", "test", "--cluster",
        "slurm")


def test_captions_that_were_made_are_not_made_again(tmp_path: Path) -> None:
    """A run that was never trained has no word of its own for being finished."""
    run = RunDir(tmp_path / "run")
    command = ("eval", "--config", "a.yaml", "--weights", "coco.pth", "--cluster", "slurm")
    record_jobs(run, [Submitted("predict", "4", command=command)])
    write_text(run.config, "name: a\n")
    write_json(run.predictions("val", 0), [])
    write_json(run.scores("val", 0), {"metrics": {}, "failed": {}})
    assert isinstance(job_to_repeat(run, []), Submitted)  # it may have more to caption
    write_text(run.job_ended("4"), "0 0\n")
    assert job_to_repeat(run, []) == "finished and scored, nothing to do"


def make_sweep(folder: Path) -> list[RunDir]:
    runs = [RunDir(folder / f"seed={seed}") for seed in (1, 2, 3)]
    command = ("sweep", "six.yaml", "--cluster", "slurm", "--gpus", "2")
    for number, run in enumerate(runs):
        write_text(run.frozen_config, "name: a\n")
        record_jobs(run, [Submitted("train", f"1_{number}", command=command, cwd=str(Path.cwd()),
                                    site="/s.yaml", run=str(run.path.resolve()))])
    write_json(folder / "sweep.json", {"file": "/six.yaml", "runs": [
        {"run": f"runs/six/{run.name}", "overrides": []} for run in runs]})
    return runs


def test_of_a_sweep_only_what_was_named_goes_on(tmp_path: Path,
                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = make_sweep(tmp_path / "runs" / "six")
    options = ["--gpus", "2", "--cluster", "slurm", "--site", "/s.yaml"]
    assert launched(runs[:2]) == [["sweep", str(tmp_path / "runs/six"), *options, "--only",
                                   *(str(run.path) for run in runs[:2])]]
    shutil.copytree(tmp_path / "runs/six", tmp_path / "copied")
    assert launched([RunDir("copied/seed=1")])[0][:2] == ["sweep", str(tmp_path / "copied")]
    alone = RunDir(shutil.copytree(runs[0].path, tmp_path / "alone"))
    assert launched([alone]) == [["train", str(alone.frozen_config), "--run", str(alone.path),
                                  *options]]


def test_a_run_that_was_never_submitted_is_named(tmp_path: Path) -> None:
    assert job_to_repeat(RunDir(tmp_path), []) == NOT_SUBMITTED


def test_a_copy_goes_on_by_itself_and_leaves_the_original_alone(
        run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(run.state, {"state": "running"})
    copy = RunDir(shutil.copytree(run.path, tmp_path / "copy"))
    slurm = queue([line("1", "RUNNING")])
    assert launched([run], slurm) == []
    assert "train job 1 is running, nothing to do" in capsys.readouterr().out
    [words] = launched([copy], slurm)
    assert words[:2] == ["train", str(copy.frozen_config)]
    assert words[words.index("--run") + 1] == str(copy.path)
    assert cancel([copy], slurm) == [f"{copy.path}: no job of it is queued or running"]


def test_a_moved_run_goes_on_where_it_is_also_without_its_old_folder(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    old = submitted(RunDir(tmp_path / "old" / "run"))
    write_json(old.state, {"state": "stopped"})
    moved = RunDir(shutil.move(old.path, tmp_path / "new" / "run"))
    shutil.rmtree(tmp_path / "old")
    [words] = launched([moved])
    assert words[1] == str(moved.frozen_config)
    assert f"{tmp_path}/old, where it was begun, is gone" in capsys.readouterr().err
    # A job that is still in the queue for it has to be cancelled first.
    assert [job.job_id for _, job, _ in jobs_in_queue([moved], queue([line("1", "PENDING")])
                                                      ).living] == ["1"]


@pytest.mark.parametrize(("row", "ours"), [
    (line("1", "RUNNING"), True), (line("1", "RUNNING", user="somebody"), False),
    (line("1", "RUNNING", name="train-other|x"), False),
    (line("1", "RUNNING").rsplit("|", 2)[0], True)])
def test_a_number_that_came_round_again_is_not_taken_for_ours(tmp_path: Path, row: str,
                                                              ours: bool) -> None:
    run = submitted(RunDir(tmp_path / "run"), user=user_name(), job_name="train-run")
    assert bool(jobs_in_queue([run], queue([row])).living) == ours
    older = submitted(RunDir(tmp_path / "older"))
    assert jobs_in_queue([older], queue([row])).living


def test_a_run_of_another_cluster_goes_on_here_and_nobody_is_asked_for_its_numbers(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLIP_ART_SITE", "here.yaml")
    run = submitted(RunDir(tmp_path / "run"), cluster="far")
    write_json(run.state, {"state": "stopped"})
    slurm = queue([line("1", "RUNNING")])
    [words] = launched([run], slurm)
    assert [call[0] for call in slurm.calls] == ["scontrol"]
    assert words[words.index("--site") + 1] == str(tmp_path / "here.yaml")
    assert "long" not in words
    assert "begun on cluster far" in capsys.readouterr().err
    assert cancel([run], slurm) == [f"{run.path}: its jobs are of cluster far; cancel them there"]
    assert launched([run], queue([line("1", "RUNNING")], "far")) == []


@pytest.mark.parametrize("known_by", ["note", "ended", "sacct", ""])
def test_a_job_that_only_ends_is_not_alive(run: RunDir, known_by: str) -> None:
    slurm = queue([line("1", "COMPLETING"), line("2", "PENDING")], account=(
        "1|CANCELLED by 0|0:15|9||a|b|n|\n" if known_by == "sacct" else ""))
    if known_by == "note":
        write_text(cancelled_note(run), "1\n")
    if known_by == "ended":
        write_text(run.job_ended("1"), "1\n")
    found = jobs_in_queue([run], slurm)
    living, ending = ([job.job_id for _, job, _ in jobs] for jobs in found)
    # It may be about to be queued again, after preemption.
    assert (living, ending) == ((["2"], ["1"]) if known_by else (["1", "2"], []))


def test_a_run_of_a_sweep_has_its_end_noted_where_the_sweep_was_submitted(tmp_path: Path) -> None:
    run, slurm = RunDir(tmp_path / "six" / "seed=1"), tmp_path / "six" / "slurm"
    record_jobs(run, [Submitted("train", "1_0", batch_log=str(slurm / "submitit" / "1_0_log.out"))])
    squeue = queue([line("1_0", "COMPLETING")])
    assert jobs_in_queue([run], squeue).living
    write_text(slurm / "ended_1_0", "1 0\n")
    found = jobs_in_queue([run], squeue)
    assert (found.living, len(found.ending)) == ([], 1)


def test_a_dry_run_shows_the_command_and_passes_it_on(
        run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    absent = Slurm(bin="/nowhere")
    [words] = launched([run], absent, dry_run=True, code="frozen")
    assert words[-3:] == ["--code", "frozen", "--dry-run"]
    said = capsys.readouterr().err
    assert f"cd {tmp_path} && launch.py score --run {run.path} --cluster slurm" in said
    assert "not known what is in the queue: no command /nowhere/squeue" in said


def test_a_command_that_cannot_be_read_is_the_users_to_repeat(run: RunDir) -> None:
    [job, *_] = read_jobs(run)
    with pytest.raises(UserError, match="cannot read how the run was submitted"):
        words_to_repeat(run, replace(job, command=("train", "a.yaml", "--time")), Changes())
