"""Trainings on a real Slurm in a real image: to the end, stopped in every way, wrong in every way.

    python -m pytest tests/cluster/test_runs.py
"""

from __future__ import annotations

import json
import os
import re
import shlex
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blip_art.cluster.record import read_jobs
from blip_art.files import RunDir, read_json, read_jsonl
from tests.cluster import daemons
from tests.cluster.conftest import Cluster
from tests.cluster.jobs import EPOCHS, Runs, last_weights, state_of

SOAK = int(os.environ.get("BLIP_ART_SOAK", "1"))
each_time = pytest.mark.parametrize("nth", range(SOAK))


@pytest.fixture(scope="module")
def runs(cluster: Cluster) -> Runs:
    return Runs(cluster)


@pytest.fixture(scope="module")
def undisturbed(runs: Runs) -> RunDir:
    run = runs.train("it's undisturbed", scored=True)
    runs.wait(run)
    return run


def test_training_is_scored_beside_it_and_reported(runs: Runs, undisturbed: RunDir) -> None:
    runs.wait_until_gone(undisturbed)
    assert runs.scratch_folders(undisturbed, Path("/tmp")) == []
    assert len(undisturbed.scored()) == len(undisturbed.predicted()) == EPOCHS, runs.said(
        undisturbed)
    assert set(read_json(undisturbed.scores("val", 0))["metrics"]) >= {"SPICE", "METEOR", "CIDEr"}
    follower = next(undisturbed.slurm.glob("follow_*.log")).read_text()
    assert f"{EPOCHS} of {EPOCHS} epochs are scored" in follower
    assert "SPICE" in (undisturbed.path / "report" / "index.html").read_text()
    manifest = read_json(undisturbed.manifest)
    assert (manifest["ranks"], manifest["restarts"]) == (4, 0)
    assert manifest["job"]["SLURM_JOB_ID"] == runs.job(undisturbed)
    assert manifest["image"]["header_sha256"]
    what_is_done_is_not_submitted_again(runs, undisturbed)


def what_is_done_is_not_submitted_again(runs: Runs, run: RunDir) -> None:
    before = len(read_jobs(run))
    words = ("train", "mini/config.yaml", "--run", f"runs/{run.name}", "train.batch_size=2",
             f"train.epochs={EPOCHS}")
    done = runs.launch(*words)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "is finished and scored, nothing to do" in done.stderr
    for wrong, message in (("--epoch=77", "no weights of epoch 77"),
                           ("--split=tst", "choose from")):
        done = runs.launch("eval", "--run", run.path, wrong)
        assert done.returncode == 2
        assert message in done.stderr.splitlines()[-1]
    assert len(read_jobs(run)) == before
    run.scores("val", 0).unlink()
    # This login node has no torch and no Java; what status proposes works there all the same.
    done = runs.cluster.launch("score", "--run", run.path, cwd=runs.folder)
    assert done.returncode == 2
    assert "this is a login node: --cluster slurm" in done.stderr
    said = runs.cluster.launch("status", run.path, "--json", cwd=runs.folder).stdout
    proposed = json.loads(said)["runs"][0]["why"].partition("launch.py ")[2]
    done = runs.cluster.launch(*shlex.split(proposed), cwd=runs.folder, env={"BLIP_ART_SITE": ""})
    assert done.returncode == 0, done.stderr
    done = runs.launch(*words)
    assert "is trained; score job" in done.stderr
    assert [job.stage for job in read_jobs(run)[before:]] == ["score"]
    runs.wait_until_gone(run)
    assert run.scores("val", 0).exists(), runs.said(run)


@each_time
def test_a_signal_saves_and_queues_again(runs: Runs, undisturbed: RunDir, nth: int) -> None:
    run = runs.train(f"signal{nth}", scored=True)
    runs.wait_for_checkpoint(run)
    runs.cluster.run(["scancel", "--signal=USR2", runs.job(run)])
    goes_on_as_if_undisturbed(runs, run, undisturbed)
    runs.wait_until_gone(run)
    assert runs.scratch_folders(run, Path("/tmp")) == []
    assert len(run.scored()) == EPOCHS, runs.said(run)
    assert (run.path / "report" / "index.html").exists()
    # The follower left its node while training waited, and came back with it.
    said = runs.said(run)
    assert f"job {runs.job(run)}, which it follows, waits in the queue" in said, said
    assert len(list(run.slurm.glob("follow_*.log"))) == 2, said


@each_time
def test_a_time_limit_saves_and_queues_again(runs: Runs, undisturbed: RunDir, nth: int) -> None:
    # Saved at every step, it takes longer than the 50 s until the signal.
    run = runs.train(f"limit{nth}", "train.save_every_min=0.0001", time_min=2, signal_delay_s=70)
    runs.wait(run, timeout=600)
    assert runs.starts(run) > 1
    assert last_weights(run) == last_weights(undisturbed)
    batch = runs.said(run)
    assert "was stopped: SIGUSR2" in batch, batch
    assert "is queued again (restart 1 of at most 20)" in batch


@each_time
def test_preemption_saves_and_goes_on_later(runs: Runs, undisturbed: RunDir, nth: int) -> None:
    run = runs.train(f"preempted{nth}", partition="preempt")
    runs.wait_for_checkpoint(run)
    urgent = ["sbatch", "--partition=urgent", f"--nodelist={runs.node(run)}", "--exclusive",
              "--time=1", "--output=/dev/null", "--wrap=sleep 5"]
    assert runs.cluster.run(urgent).returncode == 0
    goes_on_as_if_undisturbed(runs, run, undisturbed)


@each_time
def test_a_dead_node_costs_what_was_not_saved(runs: Runs, undisturbed: RunDir, nth: int) -> None:
    run = runs.train(f"node{nth}")
    runs.wait_for_checkpoint(run)
    node = runs.node(run)
    runs.cluster.kill_node(node)
    runs.cluster.wait(lambda: runs.queue("-j", runs.job(run), "-t", "PENDING"), 120, "requeue")
    runs.cluster.start_node(node)
    goes_on_as_if_undisturbed(runs, run, undisturbed)


def goes_on_as_if_undisturbed(runs: Runs, run: RunDir, undisturbed: RunDir) -> None:
    runs.wait(run)
    assert runs.starts(run) == 2, runs.said(run)
    assert last_weights(run) == last_weights(undisturbed)
    losses = [[row["loss"] for row in read_jsonl(one.train_log)] for one in (run, undisturbed)]
    assert losses[0] == losses[1]


def test_two_nodes_train_as_one_also_when_they_are_stopped(runs: Runs) -> None:
    scratch = [runs.cluster.scratch / node for node in ("v100-1", "v100-2")]
    run = runs.train("nodes", "--nodes", "2", "train.epochs=4",
                     scratch=f"{runs.cluster.scratch}/$SLURMD_NODENAME")
    runs.wait_for_checkpoint(run)
    assert len(runs.scratch_folders(run, *scratch)) == 2
    # As before a time limit: the batch script alone hears it.
    runs.cluster.run(["scancel", "--batch", "--signal=USR2", runs.job(run)])
    runs.wait(run)
    assert runs.starts(run) == 2, runs.said(run)
    runs.wait_until_gone(run)
    assert runs.scratch_folders(run, *scratch) == []
    assert read_json(run.manifest)["ranks"] == 8
    alone = runs.train("nodes_alone", "--gpus", "8", "train.epochs=4", gpus_per_node=8, gres="")
    runs.wait(alone)
    assert last_weights(run) == last_weights(alone)


def test_a_task_a_gpu_gives_the_same_weights(runs: Runs, undisturbed: RunDir) -> None:
    run = runs.train("tasks", layout="gpu")
    runs.wait(run)
    assert last_weights(run) == last_weights(undisturbed)


def test_a_cancelled_run_stays_cancelled_until_it_is_resumed(runs: Runs,
                                                             undisturbed: RunDir) -> None:
    run = runs.train("cancelled")
    runs.wait_for_checkpoint(run)
    first = runs.job(run)
    assert f"cancelled train job {first}" in runs.cluster.launch(
        "cancel", run.path, cwd=runs.folder).stdout
    resumed = runs.cluster.launch("resume", run.path, cwd=runs.folder)
    assert "submitted: train" in resumed.stderr, resumed
    waits = runs.cluster.run(["squeue", "-h", "-j", runs.job(run), "-o", "%E"])
    assert f"afterany:{first}" in waits.stdout or not runs.queue("-j", first)
    runs.cluster.wait(lambda: not runs.queue("-j", first), 60, f"the end of {first}")
    assert "not queued again" in runs.said(run)
    copy = RunDir(runs.folder / "runs" / "copy of cancelled")
    runs.cluster.run(["cp", "-r", run.path, copy.path])
    assert "no job of it" in runs.cluster.launch("cancel", copy.path, cwd=runs.folder).stdout
    resumed = runs.cluster.launch("resume", copy.path, "--time", "30", cwd=runs.folder)
    assert "submitted: train" in resumed.stderr, resumed
    goes_on_as_if_undisturbed(runs, run, undisturbed)
    runs.wait(copy)
    assert last_weights(copy) == last_weights(undisturbed)
    for one in (run, copy):
        runs.wait_until_gone(one)


def test_a_sweep_is_an_array_that_is_submitted_once(runs: Runs) -> None:
    sweep = runs.folder / "six.yaml"
    sweep.write_text("config: mini/config.yaml\nparallel: 2\ngrid: {train.lr: [1e-3, 2e-3, 3e-3]}\n"
                     "seeds: [1, 2]\nset: {train.epochs: 1, train.batch_size: 2}\n")
    words: list[str | Path] = ["sweep", sweep, "--gpus", "2"]
    first = runs.launch(*words)
    assert "6 runs; 6 to submit, 0 in the queue, 0 trained" in first.stderr, first.stderr
    again = runs.launch(*words)
    assert "6 runs; 0 to submit, 6 in the queue" in again.stderr
    watched = runs.cluster.popen([runs.cluster.python, runs.cluster.checkout / "launch.py", "logs",
                                  "-f", "runs/six"], cwd=runs.folder)
    members = [RunDir(path.parent) for path in (runs.folder / "runs/six").glob("*/slurm")
               if path.parent.name != "code"]
    members = [run for run in members if run.jobs.exists()]
    assert len(members) == 6
    assert [job.stage for job in read_jobs(RunDir(runs.folder / "runs/six"))] == ["collect"]
    assert {job.stage for run in members for job in read_jobs(run)} == {"train", "score"}
    broken = members[0]
    runs.cluster.run(["scancel", runs.job(broken)])
    most = 0
    def over() -> bool:
        nonlocal most
        running = runs.queue("-t", "RUNNING", "-n", "train-six")
        most = max(most, len(running))
        return not runs.queue("-n", "train-six,score-six,collect-six")
    runs.cluster.wait(over, 400, "the sweep's end")
    assert most == 2
    finished = [run for run in members if state_of(run) == "finished"]
    assert len(finished) == 5, runs.said(members[1])
    assert all(run.scored() for run in finished)
    lines = watched.communicate(timeout=60)[0].splitlines()
    assert {line.split(" | ")[0].strip() for line in lines if " | epoch   0  loss" in line} >= {
        run.name for run in finished}, lines
    done = runs.cluster.launch("collect", "runs/six", "runs/six/report", cwd=runs.folder)
    assert (done.returncode, "skipped, no runs: runs/six/report" in done.stderr) == (0, True)
    third = runs.launch("sweep", runs.folder / "runs/six", "--gpus", "2")
    assert "6 runs; 1 to submit, 0 in the queue, 5 trained" in third.stderr, third.stderr
    runs.wait(broken)


def test_a_sweep_started_twice_at_once_is_submitted_once(runs: Runs) -> None:
    cluster, sweep = runs.cluster, runs.folder / "twice.yaml"
    # Two that train alike: the one that is stopped must come to the other's weights.
    sweep.write_text("config: mini/config.yaml\nlist: [{score.best: spice}, {score.best: cider}]\n"
                     "set: {train.epochs: 6, train.batch_size: 2, train.save_every_min: 0.05}\n")
    started = [cluster.popen([cluster.python, cluster.checkout / "launch.py", "sweep", sweep,
                              "--cluster", "slurm", "--site", cluster.site, "--gpus", "2"],
                             runs.folder) for _ in range(2)]
    other = runs.folder / "other.yaml"
    other.write_text("config: mini/config.yaml\nseeds: [3, 4]\nset: {train.epochs: 1}\n")
    beside = runs.launch("sweep", other, "--gpus", "2")
    assert "2 runs; 2 to submit, 0 in the queue" in beside.stderr, beside.stderr
    said = sorted(process.communicate(timeout=120)[0] for process in started)
    assert "2 runs; 0 to submit, 2 in the queue" in said[0], said
    assert "2 runs; 2 to submit, 0 in the queue" in said[1]
    first, second = (RunDir(runs.folder / f"runs/twice/best={rule}") for rule in ("spice", "cider"))
    one_element_of_the_array_goes_on_alone(runs, first, second)
    runs.wait(RunDir(runs.folder / "runs/other/seed=3"))


def one_element_of_the_array_goes_on_alone(runs: Runs, stopped: RunDir, other: RunDir) -> None:
    assert runs.job(stopped).endswith("_0")
    runs.wait_for_checkpoint(stopped)
    runs.cluster.run(["scancel", "--signal=USR2", runs.job(stopped)])
    for run in (stopped, other):
        runs.wait(run)
        runs.wait_until_gone(run)
        assert run.scored()
    assert (runs.starts(stopped), runs.starts(other)) == (2, 1)
    assert last_weights(stopped) == last_weights(other)


def by_hand(runs: Runs, *words: str | Path) -> None:
    """sbatch in the checkout, with what this cluster's nodes have in the place of four V100s."""
    cluster = runs.cluster
    done = cluster.run(["sbatch", "--cpus-per-task=2", "--mem=8G", "--time=10", *words],
                       cluster.checkout,
                       {"CONTAINER": daemons.CONTAINER, "SIF": str(cluster.image),
                        "OVERLAY": str(cluster.overlay), "BLIP_ART_DEVICE": "cpu",
                        "SCRATCH": str(cluster.scratch / "by_hand")})
    assert done.returncode == 0, done.stderr


def test_sbatch_by_hand_uses_the_same_run_folder(runs: Runs) -> None:
    config = runs.folder / "by_hand.yaml"
    config.write_text((runs.folder / "mini/config.yaml").read_text().replace("mini\n", "by_hand\n",
                                                                             1))
    runs.own(config)
    by_hand(runs, "--gres=gpu:v100:2", "slurm/train.sbatch", config, "train.epochs=1")
    run = RunDir(runs.cluster.checkout / "runs" / "by_hand")
    runs.wait(run)
    runs.wait_until_gone(run)
    manifest = read_json(run.manifest)
    assert manifest["ranks"] == 2
    assert len(manifest["code"]["commit"]) == 40
    assert manifest["image"]["header_sha256"]
    references = runs.folder / "mini" / "val.json"
    by_hand(runs, "--wait", "--partition=cpu", "--array=0-1", "slurm/prepare.sbatch", references)
    by_hand(runs, "--wait", "--partition=cpu", "slurm/score.sbatch", "runs/by_hand")
    assert run.scores("val", 0).exists()
    assert list((runs.cluster.scratch / "by_hand").iterdir()) == []
    # Scored first, with all references: what was parsed ahead was found where scoring looks.
    parsed = read_json(run.floor_scores("val"))["parsed"]
    assert parsed["texts"] > 2 > parsed["new"]


def test_a_sweep_by_hand_is_an_array_of_one_run_each(runs: Runs) -> None:
    sweep = runs.folder / "hands.yaml"
    sweep.write_text(f"config: {runs.folder}/mini/config.yaml\nseeds: [1, 2]\n"
                     "set: {train.epochs: 1, train.batch_size: 2}\n")
    by_hand(runs, "--wait", "--array=0-1%2", "--gres=gpu:v100:2", "slurm/sweep.sbatch", sweep)
    first, second = (RunDir(runs.cluster.checkout / f"runs/hands/seed={seed}") for seed in (1, 2))
    assert [state_of(run) for run in (first, second)] == ["finished"] * 2
    assert runs.job(first).endswith("_0")
    assert runs.job(second).endswith("_1")
    assert last_weights(first) != last_weights(second)


@pytest.mark.parametrize(("site", "message"), [
    ({"account": "nobody"}, "Invalid account"),
    ({"partition": "fast"}, "invalid partition"),
    ({"mem_gb": 9000}, "cpus_per_gpu=1 mem_gb=9000"),
    ({"image": "/nowhere/a.sif"}, "no image at /nowhere/a.sif"),
])
def test_what_slurm_would_refuse_is_one_line(runs: Runs, site: dict[str, Any],
                                             message: str) -> None:
    done = runs.launch("train", "mini/config.yaml", "--run", "runs/refused", **site)
    assert done.returncode == 2, done.stderr
    assert message.lower() in done.stderr.lower()
    assert len(done.stderr.strip().splitlines()) == 1


def test_variables_of_an_outer_job_do_not_leak(runs: Runs) -> None:
    leaked = {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "64", "SBATCH_PARTITION": "cpu",
              "SBATCH_TIMELIMIT": "1", "SBATCH_NO_REQUEUE": "1", "SBATCH_MEM_PER_NODE": "1",
              "SLURM_MEM_PER_CPU": "100", "SLURM_TASKS_PER_NODE": "7"}
    done = runs.cluster.launch("train", "mini/config.yaml", "--run", "runs/leaked", "--no-score",
                               "--cluster", "slurm", "--site", runs.cluster.site,
                               "train.epochs=1", cwd=runs.folder, env=leaked)
    assert done.returncode == 0, done.stderr
    runs.wait(RunDir(runs.folder / "runs/leaked"))


def test_a_full_scratch_is_named(runs: Runs, tmp_path: Path) -> None:
    done = runs.launch("train", "mini/config.yaml", "--run", "runs/full", "--no-score",
                       scratch="/proc/nowhere")
    assert done.returncode == 0, done.stderr
    run = RunDir(runs.folder / "runs/full")
    runs.wait_until_gone(run)
    assert "cannot write to scratch folder /proc/nowhere" in runs.said(run)


def test_a_job_that_finds_no_gpu_ends_instead_of_training_on_the_cpu(runs: Runs) -> None:
    run = runs.train("no gpu", device="cuda")
    runs.wait_until_gone(run)
    assert "error: rank 0 has no GPU: PyTorch sees 0 on " in runs.said(run)
    assert not run.last_checkpoint.exists()


def test_a_disk_that_fills_costs_what_was_not_saved(runs: Runs, undisturbed: RunDir) -> None:
    disk = runs.folder / "runs" / "disk"
    runs.cluster.run(["mkdir", "-p", disk])
    mounted = runs.cluster.as_root(["mount", "-t", "tmpfs", "-o", "size=1g,mode=777", "tmpfs",
                                    str(disk)])
    assert mounted.returncode == 0, mounted.stderr
    try:
        run = runs.train("disk")
        runs.wait_for_checkpoint(run)
        for number in range(2):  # the first may come just before a checkpoint replaces another
            free = os.statvfs(disk)
            # No room for a checkpoint is left, though some for the words about it.
            room = max(4096, free.f_bavail * free.f_bsize - 200_000)
            runs.cluster.run(["fallocate", "-l", str(room), disk / f"others_{number}"])
            time.sleep(1)
        runs.wait_until_gone(run)
        assert "error: cannot write" in runs.said(run)
        assert state_of(run) == "failed"
        assert "last.pt" in read_json(run.state)["why"]
        assert not list(disk.rglob("*.tmp"))
        for hog in disk.glob("others_*"):
            hog.unlink()
        resumed = runs.cluster.launch("resume", run.path, cwd=runs.folder)
        assert resumed.returncode == 0, resumed.stderr
        goes_on_as_if_undisturbed(runs, run, undisturbed)
        runs.wait_until_gone(run)
    finally:
        runs.cluster.as_root(["umount", "--lazy", str(disk)])


def test_two_hundred_runs_are_submitted_with_four_calls(runs: Runs) -> None:
    counted = runs.folder / "bin"
    counted.mkdir(exist_ok=True)
    log, arrays = runs.folder / "calls", runs.folder / "arrays"
    for name in ("sbatch", "squeue", "sacct", "scontrol", "scancel"):
        script = counted / name
        script.write_text(f'#!/bin/sh\necho {name} >> {log}\n[ "$*" = "show config" ] && '
                          f'[ -e {arrays} ] && exec cat {arrays}\nexec /usr/bin/{name} "$@"\n')
        script.chmod(0o755)
    sweep = runs.folder / "many.yaml"
    sweep.write_text(f"config: mini/config.yaml\nseeds: {json.dumps(list(range(200)))}\n")
    runs.own(runs.folder)
    path = f"{counted}:{runs.cluster.environment()['PATH']}"

    def submit(*words: str) -> str:
        done = runs.cluster.launch("sweep", sweep, "--cluster", "slurm", "--site",
                                   runs.cluster.site, *words, cwd=runs.folder, env={"PATH": path})
        assert done.returncode == 0, done.stderr
        return done.stderr

    try:
        submit()
        assert log.read_text().split() == ["scontrol", *["sbatch"] * 3]
        cancel_sweep(runs)
        larger_sweeps_go_in_portions(runs, submit, arrays)
    finally:
        cancel_sweep(runs)


def cancel_sweep(runs: Runs) -> None:
    for stage in ("train", "score", "collect"):
        runs.cluster.run(["scancel", f"--name={stage}-many"])
    runs.cluster.wait(lambda: not runs.queue("-n", "train-many,score-many,collect-many"), 120,
                      "the end of the sweep")


def larger_sweeps_go_in_portions(runs: Runs, submit: Callable[..., str], arrays: Path) -> None:
    arrays.write_text("MaxArraySize            = 80\n")
    before = runs.cluster.run(["sbatch", "--parsable", "--hold", "--partition=cpu", "--time=1",
                               "--output=/dev/null", "--wrap=true"]).stdout.strip()
    said = submit("--after", before, "--mail=me@localhost")
    numbers = dict(re.findall(r"([\w.]+) (\d+)", said.split("submitted: ")[1].split("\n")[0]))
    assert list(numbers) == ["train.1", "train.2", "train.3", "score.1", "score.2", "score.3",
                             "collect"]
    held = runs.queue("-t", "PENDING", "-n", "train-many")
    assert len(held) == 200
    shown = runs.cluster.run(["scontrol", "show", "job", numbers["train.2"]]).stdout
    assert f"Dependency=afterok:{before}(unfulfilled)" in shown
    assert "MailUser=me@localhost MailType=FAIL" in shown
    shown = runs.cluster.run(["scontrol", "show", "job", numbers["score.3"]]).stdout
    assert f"Dependency=aftercorr:{numbers['train.3']}_*(unfulfilled)" in shown
    cancel_sweep(runs)
    limit = ["sacctmgr", "-i", "modify", "user", daemons.USER, "set"]
    assert runs.cluster.as_root([*limit, "maxsubmitjobs=52"]).returncode == 0
    try:
        said = submit("--after", before)  # which waits, too, as may jobs of other tests
        left = re.search(r"(\d+) of 200 runs are not submitted yet: you may have 52 jobs", said)
        assert left, said
        submitted = len(runs.queue("-n", "train-many,score-many,collect-many"))
        assert submitted == 2 * (200 - int(left[1])) + 1 <= 51
    finally:
        runs.cluster.as_root([*limit, "maxsubmitjobs=-1"])
        runs.cluster.run(["scancel", before])
