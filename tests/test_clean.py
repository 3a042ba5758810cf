"""'launch.py clean' removes what finished runs can lose, and nothing else.

    python -m pytest tests/test_clean.py
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from blip_art.cluster import cli_tools
from blip_art.cluster.clean import KINDS, Found, remove, shown, survey
from blip_art.cluster.pending import new_name
from blip_art.cluster.record import Submitted, record_jobs
from blip_art.cluster.slurm import Completed, Slurm
from blip_art.cluster.snapshot import take_snapshot
from blip_art.cluster.status import find_runs
from blip_art.files import RunDir, write_json, write_text
from blip_art.manifest import CODE_ROOT
from blip_art.score.lock import taken
from tests.score_data import write_vocabulary

HOST = os.uname().nodename
GONE = 2**22 + 1  # above every process number
DEFAULT = [kind for kind in KINDS if kind != "weights"]
PICKLE = "train-0123456789abcdef_0.pkl"
PORTION_PICKLE = f"{new_name('train.12')}_0.pkl"
LEFT = "a user's own file"


def make_run(path: Path, state: str = "finished", job: str = "") -> RunDir:
    """A run of three epochs, all scored, with one of each that can go."""
    run = RunDir(path)
    write_json(run.state, {"state": state, "why": ""})
    for epoch in range(3):
        write_text(run.weights(epoch), "w" * 1000)
        write_json(run.predictions("val", epoch), [])
        write_json(run.scores("val", epoch), {"metrics": {"CIDEr": 1.0}})
    write_json(run.best, {"epoch": 1, "rule": "cider", "value": 1.0})
    for path in (run.last_checkpoint, run.previous_checkpoint):
        write_text(path, "c" * 5000)
    write_json(run.code / "snapshot.json", {})
    write_text(run.code / "blip_art" / "a.py", "")
    for name in ("12_submitted.pkl", "12_0_result.pkl", "12_0_log.out", "mine.pkl", PICKLE,
                 PORTION_PICKLE):
        write_text(run.slurm / "submitit" / name, "p")
    write_text(run.checkpoints / f".last.pt.{HOST}.{GONE}.tmp", "half")
    write_text(run.checkpoints / f".last.pt.{HOST}.{os.getpid()}.tmp", "being written")
    for name in ("my.pt", f".notes.docx.{HOST}.{GONE}.tmp"):
        write_text(run.checkpoints / name, LEFT)
    if job:
        record_jobs(run, [Submitted("train", job, command=("train",))])
    return run


def slurm(queue: str = "", absent: bool = False, cluster: str = "") -> Slurm:
    def door(argv: Sequence[str]) -> Completed:
        if absent:
            raise FileNotFoundError(2, "No such file or directory")
        return Completed(0, f"ClusterName = {cluster}\n" if argv[0] == "scontrol" else queue)
    return Slurm(door)


def names(found: Found) -> set[str]:
    return {path.name for one in found.items for path in one.paths}


def test_a_finished_run_loses_only_what_is_known(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art")
    found = survey([run], slurm(), DEFAULT)
    assert names(found) == {"last.pt", "previous.pt", "code", "12_submitted.pkl",
                            "12_0_result.pkl", PICKLE, PORTION_PICKLE,
                            f".last.pt.{HOST}.{GONE}.tmp"}
    assert {one.kind: one.size for one in found.items}["checkpoints"] == 10_000
    before = {path for path in run.path.rglob("*") if path.is_file()}
    freed, problems = remove(found.items)
    assert (freed, problems) == (sum(one.size for one in found.items), [])
    gone = before - set(run.path.rglob("*"))
    assert {path.name for path in gone} == {*names(found) - {"code"}, "snapshot.json", "a.py"}
    assert not survey([run], slurm(), DEFAULT).items


def test_weights_go_only_when_they_are_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art")
    assert names(survey([run], slurm(), ["weights"])) == {"epoch_00.safetensors"}
    run.scores("val", 2).unlink()  # it may turn out best
    assert not survey([run], slurm(), ["weights"]).items


def test_checkpoints_stay_where_the_best_weights_are_gone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art")
    run.weights(1).unlink()
    assert not survey([run], slurm(), ["checkpoints"]).items


@pytest.mark.parametrize(("state", "job", "queue", "why"), [
    ("running", "", "", "running"), ("stopped", "", "", "stopped"), ("failed", "", "", "failed"),
    ("finished", "7", "7|7|PENDING|None|0:00|1:00|N/A||cpu|(null)\n", "train job 7 is pending")])
def test_a_run_that_is_alive_or_not_finished_keeps_everything(
        tmp_path: Path, state: str, job: str, queue: str, why: str) -> None:
    run = make_run(tmp_path / "art", state, job)
    found = survey([run], slurm(queue), KINDS)
    assert not found.items
    assert why in found.kept[0][1]
    assert f"kept whole: {run.path} ({why})" in shown(found)


def test_a_run_whose_jobs_cannot_be_asked_about_keeps_everything(tmp_path: Path) -> None:
    submitted, local = make_run(tmp_path / "a", job="7"), make_run(tmp_path / "b")
    found = survey([submitted, local], slurm(absent=True), KINDS)
    assert {one.folder for one in found.items} == {local.path}
    assert "no Slurm is here" in found.kept[0][1]


@pytest.mark.parametrize("asked", ["beta", ""])
def test_a_run_with_a_job_on_another_cluster_keeps_everything_until_that_has_ended(
        tmp_path: Path, asked: str) -> None:
    run = make_run(tmp_path / "art")
    record_jobs(run, [Submitted("train", "6", cluster="alpha"),
                      Submitted("predict", "7", cluster="alpha")])
    write_text(run.job_ended("6"), "0\n")
    found = survey([run], slurm(cluster=asked), KINDS)
    assert not found.items
    assert "predict job 7 is of cluster alpha" in found.kept[0][1]
    assert survey([run], slurm(cluster="alpha"), KINDS).items
    write_text(run.job_ended("7"), "0\n")
    assert survey([run], slurm(cluster=asked), KINDS).items


def test_what_is_being_scored_or_trained_is_left_alone(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art")
    items = survey([run], slurm(), KINDS).items
    for lock in (run.scoring_lock, run.training_lock):
        with taken(lock):
            assert not survey([run], slurm(), KINDS).items
            freed, problems = remove(items)  # it began after the list was shown
            assert freed == 0
            assert "somebody works in it" in problems[0]
    assert run.last_checkpoint.exists()


@pytest.mark.parametrize("where", ["art", "."])
def test_a_submission_without_an_answer_may_be_a_job(tmp_path: Path, where: str) -> None:
    run = make_run(tmp_path / "art")
    write_json(RunDir(tmp_path / where).pending, [])
    found = survey([run], slurm(), KINDS)
    assert not found.items
    assert "a submission is still open" in found.kept[0][1]


def test_code_that_a_process_imports_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path / "art")
    captioning = subprocess.Popen(["sleep", "60"], env={"PYTHONPATH": str(run.code)})
    try:
        found = survey([run], slurm(), KINDS)
    finally:
        captioning.kill()
        captioning.wait()
    assert not found.items
    assert found.kept[0][1] == "a process works in it"


def test_links_are_not_followed(tmp_path: Path) -> None:
    run, other = make_run(tmp_path / "art"), make_run(tmp_path / "other")
    remove(survey([run], slurm(), ["code"]).items)
    run.code.symlink_to(other.code)
    assert not survey([run], slurm(), ["code"]).items


@pytest.mark.parametrize("job", ["", "9"])
def test_a_sweeps_own_folder_is_cleaned_when_all_its_runs_are_finished(
        tmp_path: Path, job: str) -> None:
    folder = tmp_path / "lr"
    runs = [make_run(folder / name) for name in "ab"]
    write_json(folder / "sweep.json", {})
    write_json(folder / "code" / "snapshot.json", {})
    write_text(folder / "slurm" / "submitit" / "9_submitted.pkl", "p")
    if job:  # of the report
        record_jobs(RunDir(folder), [Submitted("collect", job)])

    def kinds_of_sweep(some: list[RunDir], queue: str = "") -> set[str]:
        return {one.kind for one in survey(some, slurm(queue), DEFAULT).items
                if one.folder == folder}
    assert kinds_of_sweep(find_runs([str(folder)])) == {"code", "pickles"}
    assert kinds_of_sweep(runs) == {"code", "pickles"}
    assert not survey(find_runs([str(folder)]), slurm(), DEFAULT).kept
    if job:
        queue = "9|9|PENDING|None|0:00|1:00|N/A||cpu|(null)\n"
        assert not kinds_of_sweep(find_runs([str(folder)]), queue)
        assert not kinds_of_sweep(runs, queue)
    write_json(runs[0].state, {"state": "stopped"})
    for some in (find_runs([str(folder)]), runs[1:]):
        assert not kinds_of_sweep(some)


def test_scratch_is_ours_old_and_unused(tmp_path: Path) -> None:
    import getpass
    user, old = getpass.getuser(), time.time() - 2 * 86400
    for name in (f"blip_art-{user}-12", f"blip_art-{user}-13", f"blip_art-{user}-14",
                 f"blip_art-{user}-15", f"blip_art-{user}-16.abc123", "blip_art-shell.abc123",
                 "blip_art-somebody-12", "blip_art-notes", "other"):
        (tmp_path / name / "fuse").mkdir(parents=True)
        if name[-2:] != "13":
            os.utime(tmp_path / name, (old, old))
    queue = "14\n15\n"  # the second is an element of array 14
    used = str(tmp_path / f"blip_art-{user}-12")
    in_use = subprocess.Popen(["sleep", "60"], env={"TMPDIR": used})
    try:
        assert names(survey([], slurm(queue), KINDS, str(tmp_path))) == {
            f"blip_art-{user}-16.abc123"}
    finally:
        in_use.kill()
        in_use.wait()
    found = survey([], slurm(queue), KINDS, str(tmp_path))
    assert names(found) == {f"blip_art-{user}-16.abc123", f"blip_art-{user}-12"}
    # A workstation that mounts the nodes' scratch cannot say which jobs are gone.
    assert not names(survey([], slurm(absent=True), KINDS, str(tmp_path)))
    remove(found.items)
    assert len(list(tmp_path.iterdir())) == 7


def test_without_its_code_a_run_is_scored_and_reported(repo: Path, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs" / "art")
    take_snapshot(CODE_ROOT, run.code)
    write_text(run.config, f"data: {{annotations: {tmp_path}, train: train.json}}\n"
               f"model: {{tokenizer: {tmp_path}}}\nscore: {{metrics: [cider], best: cider}}\n")
    write_vocabulary(tmp_path)
    write_json(tmp_path / "train.json", [{"image": "a", "caption": "a lion", "image_id": "a"}])
    write_json(run.references("val"), {"images": [{"id": 1}], "annotations": [
        {"id": 1, "image_id": 1, "caption": "a lion"}]})
    for epoch in range(3):
        write_json(run.predictions("val", epoch), [{"image_id": "1", "caption": "a lion"}])
        run.scores("val", epoch).unlink()

    def say(*words: str) -> str:
        done = subprocess.run([sys.executable, repo / "launch.py", *words], cwd=tmp_path,
                              text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout
    said = say("clean")
    assert "can be removed; --yes removes it" in said
    assert "lost with them: that very code" in said
    assert run.last_checkpoint.exists()
    assert "removed" in say("clean", "runs/art", "--yes", "--what", "code,checkpoints")
    assert not run.code.exists()
    assert not run.last_checkpoint.exists()
    assert '"finished"' in say("status", "--json")
    say("score", "--run", "runs/art")
    assert (run.code / "blip_art" / "files.py").exists()
    assert run.scores("val", 1).exists()
    say("clean", "--yes", "--what", "code")
    say("collect", "runs/art")
    assert (run.path / "report" / "index.html").exists()


def test_help_names_the_kinds_there_are() -> None:
    assert tuple(KINDS) == cli_tools.CLEANED
