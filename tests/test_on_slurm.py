"""What is submitted, what is not submitted twice, and what is refused before it waits in a queue.

    python -m pytest tests/test_on_slurm.py
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import pytest

from blip_art.cluster import extras, on_slurm
from blip_art.cluster.control import Live
from blip_art.cluster.logs import newest
from blip_art.cluster.on_slurm import lacking, refuse_other_settings, site_of
from blip_art.cluster.record import Submitted, read_jobs, record_jobs
from blip_art.cluster.resume import job_to_repeat, resume
from blip_art.cluster.slurm import Completed, QueueRow, Slurm
from blip_art.cluster.sweep import Member, load_sweep
from blip_art.config import Config, dump_config, load_config
from blip_art.distributed import DEVICE, process_group
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_text


def make_run(path: Path, state: str, stage: str = "train") -> RunDir:
    """A run with one epoch of captions, nothing scored."""
    run = RunDir(path)
    write_json(run.state, {"state": state, "why": ""})
    write_json(run.predictions("val", 0), [])
    record_jobs(run, [Submitted(stage, "7", command=("train", "a.yaml"), cwd=str(path.parent))])
    return run


def live(run: RunDir, stage: str) -> Live:
    row = QueueRow("8", "8", "RUNNING", "", 0, 0, "", "", "", "")
    return run, Submitted(stage, "8"), row


@pytest.mark.parametrize("stage", ["score", "rescore"])
def test_what_is_being_scored_is_not_submitted_again(tmp_path: Path, stage: str) -> None:
    scoring, done, stopped, training = (Member(make_run(tmp_path / name, state), ()) for name, state
                                        in (("a", "finished"), ("b", "finished"), ("c", "stopped"),
                                            ("d", "running")))
    living = [live(scoring.run, stage), live(training.run, "train")]
    assert lacking([scoring, done, stopped, training], living) == ([stopped], [done.run], 1)
    assert job_to_repeat(scoring.run, living[:1]) == f"{stage} job 8 is running, nothing to do"


@pytest.fixture
def config(tmp_path: Path) -> Config:
    write_text(tmp_path / "a.yaml", "name: a\ntrain: {epochs: 3}\n")
    return load_config(str(tmp_path / "a.yaml"))


def test_a_run_of_other_settings_is_not_taken_for_done(tmp_path: Path, config: Config) -> None:
    run = make_run(tmp_path / "run", "finished")
    write_text(run.config, dump_config(load_config(str(tmp_path / "a.yaml"), [
        "train.keep=all", "train.epochs=10"])))
    with pytest.raises(UserError, match=r"another configuration \(train\.epochs.*give the run"):
        refuse_other_settings([(run, config)])
    write_text(run.config, dump_config(config))
    refuse_other_settings([(run, config)])


def test_settings_on_the_command_line_win_over_the_sweeps_file(tmp_path: Path,
                                                               config: Config) -> None:
    sweep = tmp_path / "sweep.yaml"
    write_text(sweep, f"config: {tmp_path}/a.yaml\nset: {{train.epochs: 2}}\nseeds: [1, 2]\n")
    assert load_sweep(str(sweep), ["train.epochs=5"]).settings == (
        ("seed=1", "train.epochs=5"), ("seed=2", "train.epochs=5"))
    with pytest.raises(UserError, match="the same run twice"):
        load_sweep(str(sweep), ["seed=3"])


def test_resume_passes_over_runs_of_this_machine(tmp_path: Path,
                                                 capsys: pytest.CaptureFixture[str]) -> None:
    local = RunDir(tmp_path / "demo")
    write_json(local.state, {"state": "finished"})
    stopped = make_run(tmp_path / "art", "stopped")
    slurm = Slurm(lambda argv: Completed(0))
    assert resume([local, stopped], slurm, launch=["true"]) == 0
    assert "demo: was not submitted to Slurm" in capsys.readouterr().out
    with pytest.raises(UserError, match="was not submitted to Slurm"):
        resume([local], slurm)


def test_the_log_of_a_report_is_found_where_it_is(tmp_path: Path) -> None:
    run, log = RunDir(tmp_path / "run"), tmp_path / "report" / "slurm" / "collect_9_0.log"
    write_text(log, "a plot failed\n")
    record_jobs(run, [Submitted("collect", "9", log=str(log.with_name("collect_9_{restart}.log")))])
    found = newest(run, "collect")
    assert found
    assert found.path == log


def test_a_rank_that_must_have_a_gpu_does_not_go_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DEVICE, "cuda")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(UserError, match="rank 0 has no GPU: PyTorch sees 0"), process_group():
        raise AssertionError


@pytest.mark.parametrize(("changes", "message"), [
    ({"time": 2}, "signal_delay_s must be less than the time limits"),
    ({"processes": 8}, "--gpus 8: nodes have 4")])
def test_the_command_line_keeps_to_the_profiles_rules(
        tmp_path: Path, changes: dict[str, int], message: str) -> None:
    profile = tmp_path / "mine.yaml"
    write_text(profile, "partition: gpu\n")
    args = argparse.Namespace(**{"site": str(profile), "dry_run": True, "processes": 0, **changes})
    with pytest.raises(UserError, match=message):
        site_of(args, tmp_path)


FAKES = {
    "squeue": 'if [ -e {0}/started ]; then echo "7|7|COMPLETING|None|1:00|1:00|N/A|n|gpu|(null)|'
              'me|train-a"; fi',
    "scontrol": 'echo "ClusterName = blip"', "scancel": "true", "sacct": "true", "srun": "true",
    "sbatch": 'if [ "$1" = --test-only ]; then grep -q "^#SBATCH --gres" "$2" && echo "sbatch: '
              'Job 7 to start at 2099-01-01T17:00:00 using 8 processors" >&2; exit; fi\n'
              'cat "$1" > {0}/sbatch.$$; touch {0}/started; echo "Submitted batch job 7"'}


@pytest.fixture
def fake_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Commands that submit job 7, which is ending from then on, and keep the scripts."""
    for name, line in FAKES.items():
        write_text(tmp_path / "bin" / name, f"#!/bin/sh\n{line.replace('{0}', str(tmp_path))}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.delenv("BLIP_ART_SITE", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_cancelled_run_is_submitted_again_behind_its_own_end(
        fake_slurm: Path, repo: Path) -> None:
    def launch(*words: str) -> str:
        done = subprocess.run([sys.executable, repo / "launch.py", *words], text=True,
                              capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    for name in ("train.json", "val.json", "test.json", "six.yaml"):
        write_text(fake_slurm / name, "config: a.yaml\nseeds: [1, 2]\n")
    write_text(fake_slurm / "a.yaml", "name: a\ndata: {annotations: ., images: ., train: train.json"
                                      ", val: val.json, test: test.json}\n")
    write_text(fake_slurm / "site.yaml", "container: ''\n")
    on_slurm = ("--cluster", "slurm", "--site", "site.yaml")
    said = launch("train", "a.yaml", *on_slurm, "--no-score", "train.epochs=3")
    assert " h (01 Jan 17:00), as the queue is now\n" in said
    [job] = read_jobs(RunDir("runs/a"))
    assert (job.cluster, job.run, job.job_name) == ("blip", f"{fake_slurm}/runs/a", "train-a")
    write_text(fake_slurm / "a.yaml", "name: other\n")  # which is none of this run's business
    write_json(RunDir("runs/a").jobs, [{**asdict(job), "user": "me"}])
    assert "cancelled train job 7 (completing)" in launch("cancel", "runs/a")
    write_text("runs/a/code/blip_art/errors.py", "# as it was\n")
    assert "the checkout's are used" in launch("resume", "runs/a", "--dry-run")
    said = launch("resume", "runs/a", "--time", "77", "--code", "frozen")
    assert "1 job ended but not yet on all nodes (7)" in said
    assert "1 file of the code changed since" in said
    assert "(blip_art/errors.py): the copy goes on" in said
    scripts = [path.read_text() for path in fake_slurm.glob("sbatch.*")]
    [again] = [text for text in scripts if "--dependency=afterany:7" in text]
    assert "--time=77" in again
    assert load_config(RunDir("runs/a").frozen_config).train.epochs == 3
    assert "# as it was" in Path("runs/a/code/blip_art/errors.py").read_text()
    # The fake numbers it 7 again, so it is not recorded once more.
    write_json(RunDir("runs/a").jobs, [
        {**asdict(job), "user": "me", "command": [*job.command, "--code", "frozen"]}])
    assert "the checkout's are used" in launch("resume", "runs/a", "--dry-run")
    write_json(RunDir("runs/a").jobs, [{**asdict(job), "cluster": "alpha"}])
    refused = subprocess.run([sys.executable, repo / "launch.py", "resume", "runs/a"], text=True,
                             capture_output=True, check=False)
    assert (refused.returncode, len(list(fake_slurm.glob("sbatch.*")))) == (1, len(scripts))
    assert "site.yaml, a profile of cluster alpha" in refused.stderr


@pytest.mark.parametrize(("living", "message"), [
    ([], "leave out --code frozen"), ([None], "wait until its jobs have ended")])
def test_a_copy_of_an_older_version_is_not_started_by_this_ones_scripts(
        tmp_path: Path, repo: Path, living: list[Live], message: str) -> None:
    write_text(tmp_path / "code" / "singularity" / "run.sh", "")
    with pytest.raises(UserError, match=message):
        on_slurm._snapshot(argparse.Namespace(code="frozen"), repo, tmp_path / "code", living, [])


def test_what_waits_for_no_stage_waits_for_the_job_and_failures_are_mailed(
        tmp_path: Path, repo: Path, config: Config) -> None:
    def lines(*words: str) -> dict[str, list[str]]:
        done = subprocess.run(
            [sys.executable, repo / "launch.py", "train", "a.yaml", "--cluster", "slurm",
             "--dry-run", *words], cwd=tmp_path, text=True, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        scripts = done.stdout.split("# === sbatch: ")[1:]
        return {text.split("\n")[0]: [line.removeprefix("#SBATCH ") for line in text.splitlines()
                                      if "--mail" in line or "--dependency" in line]
                for text in scripts}

    plain = lines()
    assert plain["train"] == []
    asked = lines("--after", "12,afterany:13_4", "--mail=me@here")
    assert asked["train"] == ["--dependency=afterok:12,afterany:13_4", "--mail-type=FAIL",
                              "--mail-user=me@here"]
    assert asked["score"][0] == plain["score"][0]
    assert asked["collect"][1:] == ["--mail-type=END,FAIL", "--mail-user=me@here"]
    assert lines("--no-score", "--mail")["train"] == ["--mail-type=END,FAIL"]


@pytest.mark.parametrize(("words", "message"), [
    (["--after", "job7", "--cluster", "slurm"], "--after job7: must be a job's number"),
    (["--after", "afterwards:7", "--cluster", "slurm"], "several: 123,afterany:124_7"),
    (["--mail", "a.yaml", "--cluster", "slurm"], "--mail a.yaml: no address; write --mail=ADD"),
    (["--mail"], "--mail is for --cluster slurm")])
def test_what_is_no_job_or_address_is_refused(words: list[str], message: str) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cluster", default="local")
    extras.add_arguments(parser.add_argument_group("slurm"))
    with pytest.raises(UserError, match=re.escape(message)):
        extras.check_arguments(parser.parse_args(words))


@pytest.mark.parametrize(("after", "message"), [
    ("12,afterany:13,14,15_2", ""),
    ("99", "Slurm knows no job 99"),
    ("13", "job 13 is failed, and nothing starts after that; 'afterany:13' does"),
    ("15", "job 15 is timeout")])
def test_a_job_that_nothing_can_wait_for_is_refused(after: str, message: str) -> None:
    queue = [["12", "RUNNING"], ["15_2", "PENDING"]]
    ended = [["13", "FAILED"], ["14", "COMPLETED"], ["15_1", "TIMEOUT"], ["15_2", "FAILED"]]

    def door(argv: Sequence[str]) -> Completed:
        return Completed(0, "".join(
            f"{job}|{job}|{state}|||||||\n" for job, state in queue) if argv[0] == "squeue" else
            "".join(f"{job}|{state}|0:0|1||||\n" for job, state in ended))
    with pytest.raises(UserError, match=re.escape(message)) if message else nullcontext():
        extras.check_jobs(after, Slurm(door), has_sacct=True)


def test_what_is_repeated_does_not_wait_again() -> None:
    assert extras.without_after(["train", "--after", "7", "a.yaml", "--aft=8", "--mail"]) == [
        "train", "a.yaml", "--mail"]


@pytest.mark.parametrize("command", ["eval", "predict", "score"])
def test_a_configuration_names_the_run(tmp_path: Path, repo: Path, config: Config,
                                       command: str) -> None:
    def said(*words: str) -> str:
        done = subprocess.run([sys.executable, repo / "launch.py", command, *words, "--dry-run"],
                              cwd=tmp_path, text=True, capture_output=True, check=False)
        return done.stdout if done.returncode == 0 else done.stderr
    assert "no run is named" in said()
    if command != "score":
        assert "--config a.yaml --epoch 1 generate.num_beams=5" in said(
            "a.yaml", "generate.num_beams=5", "--epoch", "1")
    write_text(RunDir(tmp_path / "runs/a").config, dump_config(config))
    text = said("a.yaml")
    assert "--run runs/a" in text
    assert "--config" not in text
