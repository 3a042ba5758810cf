"""What a cluster allows, and how a sweep that is larger is submitted: arrays, and how many jobs.

    python -m pytest tests/test_portions.py
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pytest

from blip_art.cluster import checks_slurm, on_slurm
from blip_art.cluster.batch import Stage, dependency, sweep_stages
from blip_art.cluster.jobs import Job
from blip_art.cluster.limits import Limits, SubmitLimit, preemption, read_limits
from blip_art.cluster.on_slurm import fitting
from blip_art.cluster.plan import Place
from blip_art.cluster.portions import in_portions
from blip_art.cluster.site import Site
from blip_art.cluster.slurm import Completed, Slurm
from blip_art.cluster.snapshot import take_snapshot
from blip_art.cluster.sweep import Member
from blip_art.errors import UserError
from blip_art.files import RunDir, write_text

CONFIG = ("Configuration data as of 2026-11-29T15:00:00\nMaxArraySize            = 1001\n"
          "PreemptMode             = GANG,{mode}\nPreemptType             = preempt/{type}\n"
          "SchedulerParameters     = bf_interval=2,max_array_tasks=800\n")
PARTITIONS = ("PartitionName=gpu AllowQos=ALL QoS=N/A Default=YES PriorityTier=10 PreemptMode=OFF\n"
              "PartitionName=cheap AllowQos=ALL QoS=few Default=NO PriorityTier=1 "
              "PreemptMode=CANCEL\n")
QOS = "normal|cluster|||\nlow|cancel|500||\nfew||40||9000\n"
SITE = Site(partition="cheap", account="art")


def slurm(mode: str = "REQUEUE", type: str = "partition_prio", maxsubmit: str = "") -> Slurm:
    """Answers as Slurm 22.05 prints them."""
    def door(argv: Sequence[str]) -> Completed:
        words = " ".join(argv[1:])
        return Completed(0, CONFIG.format(mode=mode, type=type) if "show config" in words else
                         PARTITIONS if "partition" in words else QOS if "show qos" in words else
                         f"other||a,b|\nart|{maxsubmit}|normal,low|low\n")
    return Slurm(door)


def test_the_tightest_limit_counts() -> None:
    few = SubmitLimit(40, "MaxSubmitJobsPerUser of qos few")
    assert read_limits(SITE, slurm()) == Limits(800, few)
    assert read_limits(SITE, slurm(maxsubmit="7")).submit == SubmitLimit(
        7, "MaxSubmitJobs of account art")
    low = SubmitLimit(500, "MaxSubmitJobsPerUser of qos low")
    assert read_limits(Site(partition="gpu", account="art"), slurm()).submit == low
    assert read_limits(Site(partition="gpu", account="art", qos="normal"), slurm()).submit is None
    assert read_limits(Site(has_sacct=False), slurm()).submit is None


@pytest.mark.parametrize(("site", "answers", "said"), [
    (SITE, slurm(), ["cheap cancels what it preempts (PreemptMode=CANCEL)"]),
    (Site(partition="gpu"), slurm(), []),
    (Site(), slurm(), []),
    (SITE, slurm(type="none"), []),
    (SITE, slurm("CANCEL", "qos"), ["qos low cancels what it preempts (PreemptMode=CANCEL)"]),
    (Site(qos="normal"), slurm("CANCEL", "qos"), ["qos normal cancels"]),
    (Site(qos="normal"), slurm("REQUEUE", "qos"), ["qos normal queues again"])])
def test_doctor_says_what_preemption_does(site: Site, answers: Slurm, said: list[str]) -> None:
    found = [check.what for check in checks_slurm.preempted(site, answers)]
    assert len(found) == len(said)
    assert all(words in what for words, what in zip(said, found, strict=True))


def test_doctor_says_how_large_a_sweep_may_be() -> None:
    arrays, queue = checks_slurm.amounts(SITE, slurm())
    assert arrays.what.startswith("arrays of up to 800 jobs")
    assert "a sweep submits at most 19 runs at a time" in queue.what
    [_, few] = checks_slurm.amounts(SITE, slurm(maxsubmit="3"))
    assert (few.verdict, "a training is 4" in few.what) == ("warn", True)
    assert list(preemption(Site(partition="nowhere"), slurm())) == []


def stages(tmp_path: Path, runs: int, parallel: int) -> list[Stage]:
    """A sweep's, with a report."""
    folders = [RunDir(tmp_path / str(number)) for number in range(runs)]
    place = Place("python", str(tmp_path), str(tmp_path), layout="node")
    found = sweep_stages(place, folders, [Job(str(n), ("true",)) for n in range(runs)], 1, parallel)
    return [*found, Stage("collect", (Job("c", ("true",)),), (folders[0],),
                          after=(("afterany", "score"),))]


def described(found: Sequence[Stage]) -> list[tuple[str, int, int, str]]:
    ids = {stage.name: stage.name for stage in found}
    return [(one.name, len(one.jobs), one.parallel, dependency(one, ids)) for one in found]


def test_a_sweep_above_the_limit_is_several_arrays(tmp_path: Path) -> None:
    whole = stages(tmp_path, 5, 3)
    assert described(in_portions(whole, 5)) == described(whole)
    assert described(in_portions(whole, None)) == described(whole)
    assert described(in_portions(whole, 2)) == [
        ("train.1", 1, 1, ""), ("train.2", 2, 1, ""), ("train.3", 2, 1, ""),
        ("score.1", 1, 0, "afterok:train.1"), ("score.2", 2, 0, "aftercorr:train.2"),
        ("score.3", 2, 0, "aftercorr:train.3"),
        ("collect", 1, 0, "afterany:score.1,afterany:score.2,afterany:score.3")]
    assert [job.name for stage in in_portions(whole, 2)[:3] for job in stage.jobs] == list("01234")


def test_no_more_runs_at_once_than_the_sweep_says(tmp_path: Path) -> None:
    divided = described(in_portions(stages(tmp_path, 9, 8), 3))[:3]
    assert [parallel for _, _, parallel, _ in divided] == [3, 3, 2]
    chained = described(in_portions(stages(tmp_path, 10, 2), 2))[:5]
    assert [one[2:] for one in chained] == [
        (1, ""), (1, ""), (1, "afterany:train.1"), (1, "afterany:train.2"),
        (1, "afterany:train.3")]


def test_as_many_runs_are_submitted_as_may_be_queued(
        tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    members = [Member(RunDir(tmp_path / str(number)), ()) for number in range(9)]
    limit = SubmitLimit(20, "MaxSubmitJobs of account art")
    assert fitting(members, 0, None) == members
    assert fitting(members, 1, limit, lambda: 0) == members
    assert fitting(members, 0, limit, lambda: 10) == members[:4]
    assert "5 of 9 runs are not submitted yet: you may have 20 jobs" in capsys.readouterr().err
    with pytest.raises(UserError, match="10 are there|wait until some have ended"):
        fitting(members, 0, limit, lambda: 18)


def test_changed_code_is_named_for_portions_too(tmp_path: Path, repo: Path,
                                                capsys: pytest.CaptureFixture[str]) -> None:
    code = tmp_path / "code"
    take_snapshot(repo, code)
    write_text(code / "blip_art" / "errors.py", "# as it was\n")
    portions = [Stage("train.1", (), ()), Stage("train.2", (), ())]
    on_slurm._show_changed_code(argparse.Namespace(), repo, code, portions)
    assert "1 file of the code changed since" in capsys.readouterr().err
