"""A student's first training: the demo's configuration on four ranks, followed and reported.

    python -m pytest tests/cluster/test_demo.py
"""

from __future__ import annotations

import csv
import json

import pytest

from blip_art.files import RunDir, read_json, read_jsonl
from tests.cluster.conftest import Cluster
from tests.cluster.jobs import Runs

EPOCHS = 2
DATA = """
set -euo pipefail
/ext3/venv/bin/python -m blip_art.data demo -o runs/demo-data/archive --pictures 1200
/ext3/venv/bin/python -m blip_art.data prepare runs/demo-data/archive -o runs/demo-data/annotations
/ext3/venv/bin/python -m blip_art.model.tokenizer runs/demo-data/annotations/iconclassTrain.json \\
    -o runs/demo-data/tokenizer
"""


class Demo(Runs):
    """Runs in the checkout, as the README's first commands make them."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.folder = cluster.checkout


@pytest.fixture(scope="module")
def runs(cluster: Cluster) -> Runs:
    return Demo(cluster)


def test_the_demo_is_trained_scored_and_reported_on_the_cluster(runs: Runs) -> None:
    make_data(runs.cluster)
    done = runs.cluster.launch("train", "configs/demo.yaml", "--cluster", "slurm",
                               f"train.epochs={EPOCHS}")
    assert done.returncode == 0, done.stderr
    run = RunDir(runs.folder / "runs" / "demo")
    runs.wait(run, timeout=600)
    runs.wait_until_gone(run)
    assert read_json(run.manifest)["ranks"] == 4
    assert node_of(run, "follow") == "cpu-1"
    assert len(run.scored()) == EPOCHS, runs.said(run)
    losses = [row["loss"] for row in read_jsonl(run.train_log)]
    assert losses[1] < losses[0]
    assert reported(run) == losses
    [row] = json.loads(runs.cluster.launch("status", "runs/demo", "--json").stdout)["runs"]
    assert (row["state"], row["epochs_done"]) == ("finished", EPOCHS)


def make_data(cluster: Cluster) -> None:
    """As a user would before training: inside the image, on the login node."""
    done = cluster.run([cluster.checkout / "singularity/run.sh", "bash", "-c", DATA],
                       cluster.checkout,
                       {"SIF": str(cluster.image), "OVERLAY": str(cluster.overlay)})
    assert done.returncode == 0, done.stderr


def node_of(run: RunDir, stage: str) -> str:
    """Where a stage's log says that it ran."""
    [log] = run.slurm.glob(f"{stage}_*.log")
    return log.read_text().split("node ", 1)[1].split(",")[0]


def reported(run: RunDir) -> list[float]:
    """The losses of the report's table."""
    with open(run.path / "report" / "epochs.csv", newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]
