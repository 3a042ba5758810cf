"""A profile from what Slurm says: what is chosen, what is marked, and that it can be read.

    python -m pytest tests/test_site_init.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from blip_art.cluster import site_init
from blip_art.cluster.site import Site, load_site
from blip_art.cluster.site_init import choose, find_facts, newest_module, profile_text
from blip_art.cluster.slurm import Completed, ControllerDown, Slurm
from blip_art.errors import UserError

SINFO = """\
debug|up|30:00|gpu:a100:2|1|idle|32|128000
batch*|up|2-00:00:00|(null)|40|mixed|128|256000
gpu|up|12:00:00|gpu:a100:4(S:0-1),nvme:1|20|mixed|64|512000
gpu|up|12:00:00|gpu:h100:8(S:0-1)|2|allocated|96|1024000
all|up|1-00:00:00|gpu:a100:4|200|idle|64|512000
theirs|up|infinite|gpu:h100:8|90|idle|96|1024000
"""
PARTITIONS = """\
PartitionName=debug AllowGroups=ALL AllowAccounts=ALL Default=NO State=UP PreemptMode=OFF
PartitionName=batch AllowGroups=ALL AllowAccounts=ALL Default=YES State=UP PreemptMode=OFF
PartitionName=gpu AllowGroups=ALL AllowAccounts=ALL DenyAccounts=guest State=UP PreemptMode=OFF
PartitionName=all AllowGroups=ALL AllowAccounts=ALL State=UP PreemptMode=REQUEUE
PartitionName=theirs AllowGroups=ALL AllowAccounts=physics,chem State=UP PreemptMode=OFF
PartitionName=closed AllowGroups=ALL AllowAccounts=ALL State=DOWN PreemptMode=OFF
"""
CONFIG = "Configuration data as of now\nClusterName             = hydra\nTmpFS = /local/tmp\n"
PRINTED = {"sinfo": SINFO.replace("batch*", "batch"), "partition": PARTITIONS, "config": CONFIG,
           "associations": "art|normal,high\nguest|normal\n", "user": "art\n", "sacct": ""}


def slurm(**changes: str) -> Slurm:
    printed = {**PRINTED, **changes}

    def door(argv: Sequence[str]) -> Completed:
        what = {"scontrol": argv[-1], "sacctmgr": argv[5 % len(argv)]}.get(argv[0], argv[0])
        text = printed[what]
        return Completed(1, "", text) if text.startswith("error") else Completed(0, text)
    return Slurm(door)


def modules(text: str) -> site_init.Door:
    return lambda argv: Completed(0, text)


def written(tmp_path: Path, asked: Slurm, text: str = "") -> tuple[Site, str]:
    facts = find_facts(asked, modules(text))
    target = tmp_path / "hydra.yaml"
    site_init.write_profile(profile_text(choose(facts, tmp_path), facts), target)
    return load_site(str(target)), target.read_text()


@pytest.fixture(autouse=True)
def no_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)


def test_the_partition_is_one_that_this_user_may_use_for_long(tmp_path: Path) -> None:
    site, text = written(tmp_path, slurm())
    assert (site.name, site.partition, site.cpu_partition) == ("hydra", "gpu", "batch")
    assert (site.gres, site.gpus_per_node, site.cpus_per_gpu) == ("gpu:a100:{gpus}", 4, 16)
    assert (site.mem_gb, site.time_min, site.cpu_time_min) == (486, 720, 1440)
    assert (site.account, site.scratch, site.has_sacct) == ("art", "/local/tmp", True)
    assert "# GPU jobs. gpu: 20 nodes with 4 a100, 64 CPUs, 512 GB; limit 12 h" in text
    assert "# 2 nodes with 8 h100" in text
    assert "preemptible (REQUEUE)" in text
    assert "theirs" not in text
    assert "normal, high" in text


def test_what_slurm_cannot_say_is_marked(tmp_path: Path) -> None:
    _, text = written(tmp_path, slurm())
    assert "cannot tell: container, scratch, binds, has_internet, purge_days." in text
    assert "# ?? Whether nodes reach the internet; 'doctor --job' tells.\nhas_internet: f" in text


def test_the_container_is_found_among_the_modules(tmp_path: Path) -> None:
    site, text = written(tmp_path, slurm(), "/opt/mod:\napptainer/\napptainer/1.3.4\n"
                         "apptainer/1.10.0\nsingularity-ce/4.1(default)\n")
    assert (site.container, site.modules) == ("apptainer", ("apptainer/1.10.0",))
    assert newest_module("singularity-ce/3.9 singularity-ce/3.11") == "singularity-ce/3.11"
    assert newest_module("apptainer/1.1(default) apptainer/1.4") == "apptainer/1.1"
    assert newest_module("bash: module: command not found") == ""


def test_without_accounting_accounts_are_marked(tmp_path: Path) -> None:
    site, text = written(tmp_path, slurm(associations="error: no dbd", sacct="error: none"))
    assert (site.account, site.has_sacct) == ("", False)
    assert "# ?? accounts are not known" in text


def test_a_cluster_of_one_partition_scores_in_it(tmp_path: Path) -> None:
    site, text = written(tmp_path, slurm(
        sinfo="one|up|10:00|gpu:2|3|idle|8|32000\n",
        partition="PartitionName=one Default=YES State=UP\n"))
    assert (site.partition, site.cpu_partition, site.gres) == ("one", "", "gpu:{gpus}")
    assert (site.time_min, site.signal_delay_s) == (10, 120)


def test_no_gpu_for_this_user_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no partition that you may use has GPUs"):
        written(tmp_path, slurm(associations="chem|normal\n",
                                sinfo="batch|up|1:00|(null)|1|idle|8|32000\n"))
    with pytest.raises(ControllerDown):
        find_facts(slurm(sinfo="error: Unable to contact slurm controller (connect failure)"))


def test_a_profile_is_not_replaced_unasked(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    target.write_text("partition: mine\n")
    with pytest.raises(UserError, match="--force replaces it"):
        site_init.refuse_existing(target, force=False)
    site_init.refuse_existing(target, force=True)
