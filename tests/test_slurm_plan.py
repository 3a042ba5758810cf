"""What Slurm is given, word for word, and what a job makes of what Slurm tells it.

    python -m pytest tests/test_slurm_plan.py
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest

from blip_art.cluster import batch
from blip_art.cluster.allocation import Task, expand_nodes, for_task
from blip_art.cluster.plan import train_job
from blip_art.cluster.site import Site, load_site
from blip_art.cluster.submit import Submission, shown, write_wrapper
from blip_art.errors import UserError
from blip_art.files import RunDir

GOLDEN = Path(__file__).parent / "golden" / "slurm_train.txt"
SITE = """\
partition: gpu
cpu_partition: cpu
account: art
mem_gb: 180
time_min: 600
image: blip_art.sif
overlay: overlay.sqf
parses: cache/parses.sqlite
binds: [/data/art, '/etc/proxy:/etc/proxy:ro']
modules: [apptainer/1.4]
setup: ['ulimit -n 65536']
sbatch: {constraint: v100-32g}
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return profile(tmp_path, SITE)


def profile(folder: Path, text: str) -> Site:
    (folder / "mine.yaml").write_text(text, encoding="utf-8")
    return load_site(str(folder / "mine.yaml"))


def submission(site: Site, run: RunDir) -> Submission:
    return Submission(site, run.code, run.slurm)


def test_scripts_and_wrapper_match_golden(site: Site, tmp_path: Path) -> None:
    run = RunDir("runs/a b'c")
    place = batch.slurm_place(site, run.code.resolve())
    stages = batch.train_stages(place, run, "configs/caption_art.yaml", ["train.lr=5e-5"], nodes=2)
    text = shown(stages, submission(site, run)).replace(str(tmp_path), "/cluster")
    assert text == GOLDEN.read_text(encoding="utf-8")


def test_variables_of_the_node_are_left_to_the_node(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/login")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    monkeypatch.setenv("PROJECT", "/proj/art")
    site = profile(tmp_path, "scratch: $TMPDIR/$SLURM_JOB_ID\nbinds: ['$PROJECT:/art']\n")
    text = batch.wrapper_text(site, tmp_path)
    assert "export BLIP_ART_SCRATCH='$TMPDIR/$SLURM_JOB_ID'\n" in text
    assert "export BINDS=/proj/art:/art\n" in text


def test_an_option_of_sbatch_may_have_no_value(tmp_path: Path) -> None:
    site = profile(tmp_path, "sbatch: {exclusive: true, contiguous: false, comment: , nice: 5}\n")
    place = batch.slurm_place(site, tmp_path)
    text = shown(batch.train_stages(place, RunDir("runs/a"), "a.yaml", scored=False),
                 submission(site, RunDir("runs/a")))
    assert {"#SBATCH --exclusive", "#SBATCH --nice=5"} <= set(text.splitlines())
    assert "contiguous" not in text
    assert "comment" not in text


def test_what_was_submitted_keeps_its_wrapper_when_the_profile_changes(
        site: Site, tmp_path: Path) -> None:
    run = RunDir("runs/a")
    stages = batch.train_stages(batch.slurm_place(site, tmp_path), run, "a.yaml", scored=False)
    first = write_wrapper(stages, submission(site, run))
    before = first.read_text()
    other = write_wrapper(stages, submission(replace(site, image="/other.sif"), run))
    assert (first.name, other.name) == ("wrapper.sh", "wrapper_1.sh")
    assert (first.read_text(), "/other.sif" in other.read_text()) == (before, True)
    assert write_wrapper(stages, submission(site, run)) == first


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o700), (0o027, 0o750), (0o002, 0o755)])
def test_a_wrapper_is_for_those_the_umask_names_and_written_by_nobody_else(
        site: Site, tmp_path: Path, umask: int, mode: int) -> None:
    run = RunDir("runs/a")
    stages = batch.train_stages(batch.slurm_place(site, tmp_path), run, "a.yaml", scored=False)
    before = os.umask(umask)
    try:
        path = write_wrapper(stages, submission(site, run))
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


def test_the_scripts_are_shell(site: Site, tmp_path: Path) -> None:
    run = RunDir("runs/a b'c")
    place = batch.slurm_place(site, run.code.resolve())
    text = shown(batch.train_stages(place, run, "a.yaml"), submission(site, run))
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)


def test_one_task_a_gpu_asks_for_as_many_tasks_and_starts_no_torchrun(tmp_path: Path) -> None:
    site = profile(tmp_path, "layout: gpu\ngres: ''\n")
    place = batch.slurm_place(site, tmp_path, 4)
    stage = batch.train_stages(place, RunDir("runs/a"), "a.yaml", scored=False)[0]
    asked = batch.submitit_parameters(site, stage)
    assert (asked["ntasks_per_node"], asked["cpus_per_task"]) == (4, 8)
    assert "gres" not in asked
    assert stage.jobs[0].argv[:3] == (site.python, "-m", "blip_art.train")


def test_a_sweeps_scores_wait_for_their_own_training(tmp_path: Path) -> None:
    site = profile(tmp_path, "")
    place = batch.slurm_place(site, tmp_path)
    runs = [RunDir(f"runs/s/{n}") for n in range(3)]
    train, score = batch.sweep_stages(place, runs, [train_job(place, "a.yaml", r) for r in runs],
                                      nodes=1, parallel=2)
    assert batch.submitit_parameters(site, train)["array_parallelism"] == 2
    assert batch.dependency(score, {"train": "12"}) == "aftercorr:12"
    assert [job.argv[-1] for job in score.jobs] == [str(run.path) for run in runs]


@pytest.mark.parametrize(("listed", "nodes"), [
    ("v100-1", ["v100-1"]),
    ("v100-[1-2,07],login", ["v100-1", "v100-2", "v100-07", "login"]),
    ("a[008-010]-ib,b", ["a008-ib", "a009-ib", "a010-ib", "b"]),
])
def test_node_lists_are_expanded_as_slurm_shortens_them(listed: str, nodes: list[str]) -> None:
    assert expand_nodes(listed) == nodes


def task(**changes: str) -> Task:
    return Task.read({"SLURM_JOB_ID": "71", "SLURM_JOB_NODELIST": "v100-[1-2]",
                      "SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_NODEID": "1", **changes})


def test_ranks_of_two_nodes_meet_on_the_first(tmp_path: Path) -> None:
    place = batch.slurm_place(profile(tmp_path, ""), tmp_path)
    job = for_task(train_job(place, "a.yaml", RunDir("runs/a")), task(SLURM_RESTART_COUNT="3"))
    assert {"--nnodes=2", "--node_rank=1", "--master_addr=v100-1", "--master_port=20071",
            "--signals-to-handle=SIGQUIT"} < set(job.argv)
    assert "--standalone" not in job.argv
    assert job.log == "runs/a/slurm/train_71_3.log"


def test_a_task_a_gpu_is_a_rank(tmp_path: Path) -> None:
    place = batch.slurm_place(profile(tmp_path, "layout: gpu"), tmp_path)
    array = {"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "5", "SLURM_LOCALID": "0"}
    job = for_task(train_job(place, "a.yaml", RunDir("runs/a")), task(**array))
    assert (job.env["RANK"], job.env["WORLD_SIZE"], job.env["LOCAL_RANK"]) == ("1", "2", "0")
    assert (job.env["MASTER_ADDR"], job.env["MASTER_PORT"]) == ("v100-1", "20071")
    assert job.log == "runs/a/slurm/train_70_5_0.log"


@pytest.mark.parametrize(("text", "message"), [
    ("partion: gpu", "unknown key 'partion'; did you mean 'partition'"),
    ("gpus_per_node: four", "gpus_per_node must be a whole number, not 'four'"),
    ("layout: ranks", "layout must be one of node, gpu"),
    ("signal_delay_s: 6000\ntime_min: 60", "signal_delay_s must be less than the time limits"),
    ("sbatch: {--exclude: a}", "sbatch must be keys without dashes"),
    ("[gpu]", "must hold 'key: value' lines"),
    ("a: [", "not valid YAML"),
    ("container: off", "container must be apptainer, singularity, a path, or '' to run without"),
    ("container: false", "container must be text, not False; '' is none"),
    ("modules: [off, true]", "modules must be text, not True"),
    ("sbatch: {exclude: [a, b]}", "sbatch.exclude must be text, a number or true, not"),
    ("gpus_per_node: 04", "gpus_per_node must be a whole number, not '04'"),
    ("gpus_per_node: 0", "gpus_per_node must be from 1 to 1000, not 0"),
    ("qos: a\nqos: b", "line 2: 'qos' is there twice"),
    ("path: /x", "'path' is not set"),
    ("image: " + "x" * 300, "image must be a path of at most"),
])
def test_a_wrong_profile_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        profile(tmp_path, text)


def test_options_of_sbatch_are_as_they_were_written(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "sbatch: {time: 1:30:00, exclusive: true, nice: 010, qos: off, hold: false, mem: }\n"
        "binds: /a:/b,c\n")
    site = load_site(str(tmp_path / "mine.yaml"))
    assert site.sbatch == {"time": "1:30:00", "exclusive": True, "nice": "010"}
    assert site.binds == ("/a:/b,c",)


def test_no_profile_says_how_to_get_one() -> None:
    with pytest.raises(UserError, match="copy configs/sites/v100.yaml"):
        load_site("", {})


def test_the_example_profile_is_valid(repo: Path) -> None:
    assert load_site(str(repo / "configs/sites/v100.yaml")).image == str(repo / "blip_art.sif")


def test_yes_and_no_are_switches_as_yaml_has_them(tmp_path: Path) -> None:
    site = profile(tmp_path, "has_sacct: No\nhas_internet: YES\nsbatch: {exclusive: yes, requeue: "
                   "no, overcommit: On, spread-job: OFF, kill-on-invalid-dep: 'yes'}\n")
    assert (site.has_sacct, site.has_internet) == (False, True)
    assert site.sbatch == {"exclusive": True, "overcommit": True, "kill-on-invalid-dep": "yes"}
