"""The real image and overlay, as jobs use them: scores inside, locks, signals, many at once.

    python -m pytest tests/cluster/test_inside.py
"""

from __future__ import annotations

from tests.cluster.conftest import Cluster


def test_known_scores_are_computed_in_the_read_only_overlay(cluster: Cluster) -> None:
    done = cluster.launch("overlay", "verify")
    assert done.returncode == 0, done.stderr
    assert "8 known scores" in done.stdout
