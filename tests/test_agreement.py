"""Captions of a trained model beside transformers' generate, and in half precision beside fp32.

    python -m pytest tests/test_agreement.py       bench/agreement.py does it with a thousand
"""

from __future__ import annotations

from typing import Any

import pytest

from bench.agreement import compare
from blip_art.files import RunDir
from blip_art.train.__main__ import main
from tests.mini import write_mini

PICTURES = 60


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("trained")
    config, run = write_mini(folder / "mini", train=400, val=PICTURES), RunDir(folder / "run")
    assert main([str(config), "--run", str(run.path), "train.lr=3e-3", "train.epochs=10",
                 "train.batch_size=8", "data.num_workers=0"]) == 0
    return {row["beside ours in fp32"]: row for row in compare(run, PICTURES)}


def test_captions_have_the_peers_tokens(rows: dict[str, dict[str, Any]]) -> None:
    peer = rows["transformers"]
    assert peer["different captions"] >= 4
    assert peer["same tokens"] + peer["ties"] == peer["pictures"] == PICTURES


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_scores_are_those_of_fp32(rows: dict[str, dict[str, Any]],
                                                 dtype: str) -> None:
    assert rows[dtype]["same tokens"] > .9 * PICTURES
    assert rows[dtype]["largest difference of scores, same tokens"] < .002
