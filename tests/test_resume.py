"""'launch.py resume' submits what a run lacks, for the runs that were named, and nothing else.

    python -m pytest tests/test_resume.py
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from blip_art.cluster.control import NOT_SUBMITTED, Again, Live, resume, what_again
from blip_art.cluster.record import Submitted, record_jobs
from blip_art.cluster.slurm import Completed, QueueRow, Slurm
from blip_art.files import RunDir, write_json, write_text
from blip_art.work import cancelled_note

TRAIN = ("train", "a.yaml", "--cluster", "slurm")
NOTE = "import json, sys; open('said', 'a').write(json.dumps(sys.argv[1:]) + '\\n')"


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run that was submitted with scoring and has been trained, but not scored."""
    run = RunDir(tmp_path / "run")
    record_jobs(run, [Submitted(stage, job_id, command=TRAIN, cwd=str(tmp_path), site="/s.yaml")
                      for stage, job_id in (("train", "1"), ("follow", "2"), ("score", "3"))])
    write_json(run.state, {"state": "finished"})
    write_json(run.predictions("val", 0), [])
    return run


def live(run: RunDir, stage: str) -> Live:
    row = QueueRow("3", "3", "PENDING", "Priority", 0, -1, "N/A", "", "cpu", "")
    return run, Submitted(stage, "3"), row


def test_what_is_trained_but_not_scored_is_scored(run: RunDir, tmp_path: Path) -> None:
    score = ("score", "--run", str(run.path), "--cluster", "slurm")
    assert what_again(run, []) == Again(str(tmp_path), score, "/s.yaml")
    assert what_again(run, [live(run, "score")]) == "score job 3 is pending, nothing to do"
    write_json(run.scores("val", 0), {})
    assert what_again(run, []) == "finished and scored, nothing to do"


def test_what_is_not_trained_is_trained(run: RunDir, tmp_path: Path) -> None:
    write_json(run.state, {"state": "stopped"})
    assert what_again(run, []) == Again(str(tmp_path), TRAIN, "/s.yaml")
    assert what_again(run, [live(run, "train")]) == "train job 3 is pending, nothing to do"


def test_captions_that_were_cancelled_are_made(run: RunDir) -> None:
    write_json(run.scores("val", 0), {})
    eval_test = ("eval", "--run", "run", "--split", "test", "--cluster", "slurm")
    record_jobs(run, [Submitted("predict", "4", command=eval_test)])
    assert what_again(run, []) == "finished and scored, nothing to do"
    write_text(cancelled_note(run), "4\n")
    assert what_again(run, []) == Again("", eval_test)


def test_of_a_sweep_only_what_was_named_goes_on(tmp_path: Path) -> None:
    runs = [RunDir(tmp_path / f"runs/six/seed={seed}") for seed in (1, 2, 3)]
    sweep = ("sweep", "six.yaml", "--cluster", "slurm")
    for number, run in enumerate(runs):
        record_jobs(run, [Submitted("train", f"1_{number}", command=sweep, cwd=str(tmp_path),
                                    site="/s.yaml")])
    nobody = Slurm(lambda argv: Completed(0))
    assert resume(runs[:2], nobody, (sys.executable, "-c", NOTE)) == 0
    [said] = (tmp_path / "said").read_text().splitlines()
    assert json.loads(said) == [*sweep, "--site", "/s.yaml", "--only",
                                *(str(run.path) for run in runs[:2])]


def test_a_run_that_was_never_submitted_is_named(tmp_path: Path) -> None:
    assert what_again(RunDir(tmp_path), []) == NOT_SUBMITTED
