"""Doctor's lines: what is wrong is named once, with the way out; logs follow a job to its end.

    python -m pytest tests/test_doctor.py
"""

from __future__ import annotations

import os
import struct
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from blip_art.cluster import checks_container, checks_files, checks_slurm
from blip_art.cluster.checks import FAIL, Check, fail, guarded, ok, shown, verdict, warn
from blip_art.cluster.checks_slurm import read_parts, split_gres
from blip_art.cluster.doctor import Watch, check_login, doctor_stage
from blip_art.cluster.logs import choose_stage, follow, newest
from blip_art.cluster.quota import Room, least, quota_room, read_gpfs_quota, read_quota
from blip_art.cluster.record import Submitted, record_jobs
from blip_art.cluster.site import Site
from blip_art.cluster.slurm import Completed, Slurm
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_text

SITE = Site(name="here", partition="gpu", account="art", container="", python="/bin/sh",
            gpus_per_node=4, cpus_per_gpu=8, mem_gb=100)
NODES = ("gpu|up|1-00:00:00|gpu:v100:4(S:0-1)|3|idle|40|190000\n"
         "gpu|up|1-00:00:00|gpu:a100:2|1|drain*|64|500000\n"
         "cpu|up|infinite|(null)|9|mix|40|190000\n")
DEAD = Completed(1, "", "slurm_load_jobs error: Unable to contact slurm controller\n")


def slurm(**said: Completed | str) -> Slurm:
    """Commands that say these things and succeed; others are not installed."""
    def door(argv: Sequence[str]) -> Completed:
        found = said.get(Path(argv[0]).name)
        if found is None:
            raise FileNotFoundError(2, "No such file or directory")
        return Completed(0, found) if isinstance(found, str) else found
    return Slurm(door)


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's commands are somewhere in PATH."""
    for name in (*checks_slurm.NEEDED, "sacct"):
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


def lines(check: Callable[..., object], *about: object) -> list[Check]:
    return list(guarded(check, *about))  # type: ignore[arg-type]


def partitions(**changes: object) -> list[Check]:
    site = Site(**{**asdict(SITE), **changes})
    return lines(checks_slurm.partitions, site, slurm(sinfo=NODES))


def test_a_container_whose_own_helper_hears_signals_is_told(tmp_path: Path) -> None:
    container = tmp_path / "apptainer"
    container.write_text(f"#!/bin/sh\necho apptainer version 1.4.5\n"
                         f"echo LIBEXECDIR={tmp_path}/libexec\n")
    container.chmod(0o755)
    site = Site(container=str(container))
    assert [check.verdict for check in lines(checks_container.program, site)] == ["ok"]
    helper = tmp_path / "libexec" / "apptainer" / "bin" / "squashfuse_ll"
    helper.parent.mkdir(parents=True)
    helper.touch()
    found = lines(checks_container.program, site)[-1]
    assert (found.verdict, str(helper) in found.what) == ("warn", True)


@pytest.mark.parametrize(("said", "verdict", "words"), [
    ("apptainer version 1.4.5", "ok", ""),
    ("singularity-ce version 4.1.2-jammy", "ok", ""),
    ("apptainer version 1.1.9-1.el8", "warn", "build it with Apptainer 1.2"),
    ("singularity-ce version 3.9.0", "warn", "SingularityCE 4.0"),
    ("apptainer version 1.4.3", "warn", "overlay freeze"),
    ("singularity version 3.8.7-1.el7", "fail", "Apptainer 1.0 or SingularityCE 3.9"),
    ("podman 4", "warn", "doctor --job")])
def test_a_container_program_that_is_too_old_is_named(said: str, verdict: str, words: str) -> None:
    found = checks_container.fits(said, "overlay.img")
    assert found.verdict == verdict
    assert words in found.fix


def test_an_image_that_the_program_cannot_read_is_named(tmp_path: Path) -> None:
    container, image = tmp_path / "singularity", tmp_path / "blip_art.sif"
    site = Site(container=str(container), image=str(image), overlay="")
    image.write_bytes(b"hsqs" + bytes(16) + struct.pack("<H", 6))
    container.write_text("#!/bin/sh\necho apptainer version 1.4.5\n")
    container.chmod(0o755)
    assert lines(checks_container.compression, site) == []
    container.write_text("#!/bin/sh\necho singularity-ce version 4.5.1\n")
    [found] = lines(checks_container.compression, site)
    assert found.what == f"{image} is packed with zstd, which {container} cannot read"


def test_a_partition_that_fits_is_well() -> None:
    assert partitions() == [ok("partition gpu: 3 of 4 nodes in service"),
                            ok("nodes have gpu:v100:4, 32 CPUs and the memory for it")]


def test_of_several_partitions_one_that_fits_is_enough() -> None:
    two = [check.verdict for check in partitions(partition="gpu,cpu", cpu_partition="cpu,gpu",
                                                 time_min=60)]
    assert two == ["ok"] * 5
    long, other, _ = partitions(partition="gpu,cpu", time_min=2000)
    assert (long.verdict, other.verdict) == ("warn", "ok")
    assert long.what.endswith("the profile asks for 2000: no job starts there")
    assert [check.what for check in partitions(partition="gpu,gpus") if check.verdict == FAIL] == [
        "no partition gpus"]


@pytest.mark.parametrize(("changes", "what", "fix"), [
    ({"partition": "gpus"}, "no partition gpus", "there are: gpu, cpu"),
    ({"time_min": 2000}, "gives 1440 minutes, the profile asks for 2000", "time_min: 1440"),
    ({"gpus_per_node": 8}, "no node of gpu has gpu:v100:8", "gpu:v100:4(S:0-1), gpu:a100:2"),
    ({"gres": "gpu:k80:{gpus}"}, "no node of gpu has gpu:k80:4", "'gres'"),
    ({"cpus_per_gpu": 16}, "64 CPUs are asked for", "cpus_per_gpu: 10"),
    ({"mem_gb": 400}, "400 GB of memory are asked for, nodes have 190", "mem_gb: 180"),
    ({"cpu_partition": "cpus"}, "no partition cpus", "fix 'cpu_partition'")])
def test_what_does_not_fit_is_named_with_what_would(
        changes: dict[str, object], what: str, fix: str) -> None:
    [found] = [check for check in partitions(**changes) if check.verdict == FAIL]
    assert what in found.what
    assert fix in found.fix


@pytest.mark.parametrize(("text", "parts"), [
    ("gpu:v100:4(S:0-1)", ("gpu", "v100", 4)), ("gpu:2", ("gpu", "", 2)), ("gpu", ("gpu", "", 1)),
    ("gpu:a100_1g.5gb:7", ("gpu", "a100_1g.5gb", 7))])
def test_gres_is_read_in_all_its_forms(text: str, parts: tuple[str, str, int]) -> None:
    assert split_gres(text) == parts


def test_garbage_from_sinfo_is_no_node() -> None:
    assert read_parts("slurm is sad today\n||\n") == []


@pytest.mark.usefixtures("commands")
def test_a_dead_controller_is_said_once() -> None:
    dead = slurm(sbatch="slurm 22.05.8", scontrol=Completed(1, "Slurmctld(primary) at h is DOWN"),
                 squeue=DEAD)
    found = [check.what for check in check_login(SITE, dead)]
    assert found[:2] == ["Slurm 22.05.8",
                         "controller does not answer: Slurmctld(primary) at h is DOWN"]
    assert dead.calls == [("sbatch", "--version"), ("scontrol", "ping")]


@pytest.mark.usefixtures("commands")
def test_a_site_without_accounting_is_told_how_to_say_so() -> None:
    none = slurm(sacct=Completed(1, "", "Slurm accounting storage is disabled"))
    [found] = lines(checks_slurm.accounting, SITE, none)
    assert found.verdict == "warn"
    assert "has_sacct: false" in found.fix


def test_another_account_is_offered() -> None:
    [found] = lines(checks_slurm.account, Site(account="arts"), slurm(sacctmgr="art|normal\n"))
    assert found == fail(found.what, "yours: art; fix 'account' in the site profile")


def test_an_account_may_do_what_any_of_its_lines_allows() -> None:
    said = slurm(sacctmgr="art|normal,long\nart|\nother|fast\n")
    [found] = lines(checks_slurm.account, Site(account="art", qos="long"), said)
    assert found == ok("account art")


def test_each_kind_of_job_is_tried_with_its_own_options() -> None:
    asked = slurm(sbatch=Completed(0))
    lines(checks_slurm.trial, Site(sbatch={"constraint": "v100"}, cpu_sbatch={"exclusive": True}),
          asked)
    gpu, cpu = asked.calls
    assert "--constraint=v100" in gpu
    assert "--exclusive" not in gpu
    assert "--exclusive" in cpu
    assert "--constraint=v100" not in cpu


def test_slurms_own_refusal_is_passed_on() -> None:
    refused = Completed(1, "", "allocation failure: Invalid account or account/partition "
                               "combination specified\n")
    found = lines(checks_slurm.trial, SITE, slurm(sbatch=refused))
    assert [check.verdict for check in found] == [FAIL, FAIL]
    assert found[0].what.endswith("refused: Invalid account or account/partition combination "
                                  "specified")


@pytest.mark.parametrize(("text", "rooms"), [
    ("  /scratch 104857600* 94371840 104857600 6d2h 900 1000 1200 -\n", [Room(0, 300)]),
    ("  /home 5 5 5 0 9 9 9 0\n  /scratch 0 0 60000000 0 1 0 0 0\n  / 5 5 5 0 9 9 9 0\n",
     [Room(60, -1)]),
    ("  /home 5 5 5 0 9 9 9 0\n", []),
    ("     50000000  0 60000000    0  10  0   0   0\n", [Room(10, -1)]),
    ("Disk quotas for user me (uid 7): none\n", [])])
def test_quota_is_read_from_lustre_and_from_quota(text: str, rooms: list[Room]) -> None:
    assert read_quota(text, Path("/scratch/me/art")) == rooms


GPFS = ("mmlsquota::HEADER:version:reserved:reserved:filesystemName:quotaType:id:name:blockUsage:"
        "blockQuota:blockLimit:blockInDoubt:blockGrace:filesUsage:filesQuota:filesLimit:"
        "filesInDoubt:filesGrace:remarks:quota:defQuota:fid:filesetname:\n"
        "mmlsquota::0:1:::work:GRP:9:lab:7:8:9:0:none:1:2:3:0:none:e:on:off:::\n"
        "mmlsquota::0:1:::work:USR:7:me:2000000:0:5000000:0:none:40:50:0:0:none:e:on:off:::\n"
        "mmlsquota::0:1:::home:USR:7:me:1:2:3:0:none:1:0:0:0:none:e:on:off:::\n")


def test_quota_is_read_from_gpfs() -> None:
    assert read_gpfs_quota(GPFS, "/dev/work") == [Room(3, 10)]
    assert read_gpfs_quota("", "work") == []


def test_the_file_system_says_which_command_knows_its_quota(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    monkeypatch.setattr("blip_art.cluster.quota.MOUNTS", mounts)
    asked = []

    def run(argv: Sequence[str]) -> Completed:
        asked.append(argv[0])
        return Completed(0, GPFS)
    for kind in ("lustre", "gpfs", "nfs4"):
        mounts.write_text(f"/dev/sda / ext4 rw 0 0\nwork {tmp_path} {kind} rw 0 0\n"
                          f"x {tmp_path}/other tmpfs rw 0 0\n")
        found = quota_room(tmp_path, run)
        assert found == ([Room(3, 10)] if kind == "gpfs" else [])
    assert asked == ["lfs", "mmlsquota", "quota"]
    assert least([Room(-1, 5), Room(2, -1), Room(3, 9)]) == Room(2, 5)


@pytest.mark.parametrize(("at", "head"), [
    (0, bytes(32) + b"SIF_MAGIC" + bytes(71) + struct.pack("<QQ", 4096, 904)),
    (0, b"hsqs" + bytes(36) + struct.pack("<Q", 5000)),
    (1024, bytes(4) + struct.pack("<I", 5) + bytes(16) + struct.pack("<I", 0) + bytes(28)
     + b"\x53\xef")])
def test_an_image_that_was_cut_in_copying_is_named(tmp_path: Path, at: int, head: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes((bytes(at) + head).ljust(5120, b"x"))
    assert checks_files.whole("image", str(path), "").verdict == "ok"
    path.write_bytes(path.read_bytes()[:4999])
    found = checks_files.whole("image", str(path), "copy it again")
    assert found.what.startswith(f"image {path} is cut short: 4,999 of 5,")


def test_files_that_the_site_is_about_to_delete_are_named(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    old = time.time() - 80 * 86400
    for name in ("overlay.img", "blip_art.sif"):
        write_text(name, "x")
    os.utime("overlay.img", (old, old))
    site = Site(image="blip_art.sif", overlay="overlay.img", scratch="/proc", purged=str(tmp_path),
                purge_days=90)
    [found] = lines(checks_files.purging, site)
    assert found.what.startswith("overlay.img has not been touched for 80 days; after 90")


def test_absent_assets_name_the_command_that_fetches_them(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    site = Site(container="", cache=str(tmp_path / "cache"))
    fixes = [check.fix for check in lines(checks_files.offline, site)]
    assert [fix.split(",")[0] for fix in fixes] == [
        "launch.py fetch weights", "launch.py fetch tokenizer",
        f"launch.py fetch corenlp --to {tmp_path / 'cache'}"]


def test_a_line_is_whole_on_any_screen() -> None:
    check = fail("no partition gpus in sight of anybody", "there are: gpu, cpu")
    assert shown(check) == ("fail | no partition gpus in sight of anybody | there are: gpu, cpu")
    narrow = shown(check, 40)
    assert max(map(len, narrow.splitlines())) <= 40
    assert "→ there are: gpu, cpu" in narrow


def test_the_last_line_counts() -> None:
    assert verdict([ok("a"), warn("b")]) == "2 looked at, jobs can run; 1 to know about"
    assert verdict([ok("a"), fail("b")]) == "1 of 2 must be fixed before jobs run"


def test_the_job_is_like_a_training_but_for_its_module() -> None:
    stage = doctor_stage(SITE, RunDir("runs/.doctor"))
    [job] = stage.jobs
    assert stage.gpus == 4
    assert job.argv[:5] == ("/bin/sh", "-m", "blip_art.torchrun", "--standalone",
                            "--nproc_per_node=4")
    assert job.argv[5:] == ("-m", "blip_art.cluster.doctor_job", "--folder", "runs/.doctor/slurm",
                            "--cpus", "32", "--gpus", "4")
    assert job.log == "runs/.doctor/slurm/doctor_{job}_{restart}.log"


RUNNING = "7|7|RUNNING|None|0:10|5:00|N/A|v100-1|gpu|(null)\n"


def report(run: RunDir, rank: int, state: str, *checks: Check) -> None:
    write_json(run.slurm / f"rank_{rank}.json",
               {"state": state, "checks": [asdict(check) for check in checks]})


def test_the_job_is_signalled_when_all_ranks_wait_and_reports_are_joined(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    gpu = warn("PyTorch sees no GPU")
    for rank in (0, 1):
        report(run, rank, "waiting for the signal", gpu)
    state = {"now": RUNNING}

    def door(argv: Sequence[str]) -> Completed:
        if argv[0] == "scancel":
            assert list(argv[1:]) == ["--batch", "--signal=USR2", "7"]
            report(run, 0, "done", gpu, ok("SIGUSR2 reached Python"))
            report(run, 1, "done", gpu, fail("no signal in 90 s"))
            state["now"] = RUNNING.replace("RUNNING", "COMPLETED")
        return Completed(0, state["now"])
    found = list(Watch(run, "7", 2, Slurm(door), lambda _: None).until_done(60))
    assert [check.what for check in found[:-1]] == [
        "PyTorch sees no GPU (2 ranks)", "SIGUSR2 reached Python", "no signal in 90 s (rank 1)"]
    assert found[-1].what.startswith("signal round trip")


def test_a_job_that_dies_before_it_looks_points_at_its_log(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunDir(tmp_path / "run")
    write_text(run.slurm / "batch.out", "error: no apptainer on v100-1\n")
    record_jobs(run, [Submitted("doctor", "7", log=str(run.slurm / "doctor_7_{restart}.log"),
                                batch_log=str(run.slurm / "batch.out"))])
    failed = slurm(squeue=RUNNING.replace("RUNNING", "FAILED"))
    [found] = Watch(run, "7", 4, failed).until_done(60)
    assert found.what == "job 7 ended before it looked at anything (failed)"
    assert found.fix.endswith("batch.out")
    assert "no apptainer on v100-1" in capsys.readouterr().err


def test_logs_follow_a_job_over_its_restarts_to_its_end(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip_art.cluster.logs.ASK_S", 0.0)
    run = RunDir(tmp_path)
    write_text(run.slurm / "train_3_0.log", "an older job\n")
    record_jobs(run, [Submitted("train", number, log=f"/gone/train_{number}_{{restart}}.log")
                      for number in ("3", "7")])
    steps = iter([lambda: write_text(run.slurm / "train_7_0.log", "first start\n"),
                  lambda: write_text(run.slurm / "train_7_1.log", "second "),
                  lambda: write_text(run.slurm / "train_7_1.log", "second start\n")])
    said: list[bytes] = []
    state = {"now": RUNNING}

    def door(argv: Sequence[str]) -> Completed:
        return Completed(0, state["now"])

    def step(_: float) -> None:
        action = next(steps, None)
        if action:
            action()
        else:
            state["now"] = RUNNING.replace("RUNNING", "COMPLETED")
    follow(run, "train", Slurm(door), said.append, step)
    assert b"".join(said) == b"first start\nsecond start\n"


def test_the_newest_log_is_chosen_by_number(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for number in (2, 9, 10):
        write_text(run.slurm / f"train_7_{number}.log", "")
    write_text(run.slurm / "follow_8_0.log", "")
    record_jobs(run, [Submitted("train", "7", log="runs/x/slurm/train_7_{restart}.log")])
    assert choose_stage(run) == "train"
    found = newest(run, "train")
    assert found
    assert found.path.name == "train_7_10.log"
    with pytest.raises(UserError, match="has no log of 'predict'; there are: train, follow"):
        choose_stage(run, "predict")


@pytest.mark.usefixtures("commands")
def test_doctor_without_a_profile_says_how_to_get_one(repo: Path) -> None:
    import sys

    done = subprocess.run([sys.executable, "launch.py", "doctor"], cwd=repo, text=True, check=False,
                          capture_output=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 2
    assert "no site profile: copy configs/sites/v100.yaml" in done.stderr


def test_packages_are_put_where_debian_allows_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from blip_art.cluster import checks

    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(checks.sys, "prefix", checks.sys.base_prefix)
    [missing] = [check for check in checks.check_python() if check.verdict == FAIL]
    assert missing.fix.startswith("python3 -m venv ~/blip && ~/blip/bin/python -m pip install")
    monkeypatch.setattr(checks.sys, "prefix", "/home/me/blip")
    [missing] = [check for check in checks.check_python() if check.verdict == FAIL]
    assert missing.fix.startswith(f"{checks.sys.executable} -m pip install 'submitit")
