"""Captions of weights that were not trained in the run folder, merged candidates, bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from blip_art.config import load_config
from blip_art.errors import UserError
from blip_art.files import RunDir, read_json
from blip_art.merge import merge_captions
from blip_art.model.captioner import build_captioner
from blip_art.model.tokenizer import CaptionTokenizer
from blip_art.model.weights import save_weights
from blip_art.predict import main
from tests.mini import write_mini


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mini")
    config = write_mini(folder, train=4, val=5)
    loaded = load_config(config)
    torch.manual_seed(0)
    model = build_captioner(loaded.model, CaptionTokenizer(loaded.model.tokenizer))
    save_weights(model, folder / "weights.safetensors")
    for parameter in model.text_decoder.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    save_weights(model, folder / "a_caption_each.safetensors")
    return config


@pytest.fixture(autouse=True)
def beside_the_configuration(config, monkeypatch):
    monkeypatch.chdir(config.parent)


@pytest.mark.parametrize("method", ["beam", "nucleus", "diverse"])
def test_three_candidates_are_merged_and_kept(tmp_path, method):
    assert main(["--run", str(tmp_path / "run"), "--config", "config.yaml", "--weights",
                 "weights.safetensors", "generate.captions=3", f"generate.method={method}"]) == 0
    rows = read_json(RunDir(tmp_path / "run").predictions("val", 0))
    assert [row["image_id"] for row in rows] == ["1", "2", "3", "4", "5"]
    for row in rows:
        assert len(row["candidates"]) == 3
        assert row["caption"] == merge_captions(row["candidates"])


def test_more_beams_than_tokens_are_refused_before_any_caption(tmp_path):
    with pytest.raises(UserError, match=r"num_beams=900 is too many for a vocabulary of \d+ tok"):
        main(["--run", str(tmp_path / "run"), "--config", "config.yaml", "--weights",
              "weights.safetensors", "generate.num_beams=900"])


def told(run: RunDir) -> str:
    """The file of captions, which all differ: mixed up pictures would be seen."""
    captions = [row["caption"] for row in read_json(run.predictions("val", 0))]
    assert len(set(captions)) == len(captions) == 5
    return run.predictions("val", 0).read_text()


@pytest.mark.parametrize("method", ["beam", "nucleus"])
def test_captions_do_not_depend_on_the_batch(tmp_path, method):
    files = []
    for batch in (1, 4):
        run = RunDir(tmp_path / f"batch{batch}")
        assert main(["--run", str(run.path), "--config", "config.yaml", "--weights",
                     "a_caption_each.safetensors", f"generate.method={method}",
                     f"generate.batch_size={batch}"]) == 0
        files.append(told(run))
    assert files[0] == files[1]


def test_captions_do_not_depend_on_the_number_of_ranks(repo, tmp_path):
    files = []
    for ranks in ("1", "2"):
        run = RunDir(tmp_path / ranks)
        done = subprocess.run(
            [sys.executable, "-m", "blip_art.torchrun", "--standalone", "--nproc_per_node", ranks,
             "-m", "blip_art.predict", "--run", str(run.path), "--config", "config.yaml",
             "--weights", "a_caption_each.safetensors", "generate.batch_size=2"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(repo)},
            text=True, capture_output=True)
        assert done.returncode == 0, done.stderr
        files.append(told(run))
    assert files[0] == files[1]


def weights_times(factor: float, path: Path, layer: str) -> None:
    weights = load_file("weights.safetensors")
    weights[layer] *= factor
    save_file(weights, path)


LARGE = "text_decoder.bert.encoder.layer.0.intermediate.dense.weight"


@pytest.mark.parametrize("method", ["beam", "nucleus"])
def test_weights_too_large_for_fp16_are_captioned_in_fp32(tmp_path, capsys, method):
    weights_times(1e7, tmp_path / "large.safetensors", LARGE)
    found = []
    for amp in ("off", "fp16"):
        run = RunDir(tmp_path / amp)
        assert main(["--run", str(run.path), "--config", "config.yaml", "--weights",
                     str(tmp_path / "large.safetensors"), f"train.amp={amp}",
                     f"generate.method={method}"]) == 0
        found.append(run.predictions("val", 0).read_text())
        told = "too large for float16; once more in float32" in capsys.readouterr().out
        assert told == (amp == "fp16")
    assert found[0] == found[1]


def test_damaged_weights_make_no_captions(tmp_path):
    weights_times(float("nan"), tmp_path / "bad.safetensors", LARGE)
    run = RunDir(tmp_path / "run")
    with pytest.raises(UserError, match="no numbers: the weights are damaged"):
        main(["--run", str(run.path), "--config", "config.yaml", "--weights",
              str(tmp_path / "bad.safetensors")])
    assert not run.predictions("val", 0).exists()


@pytest.mark.parametrize(("arguments", "message"), [
    ([], "has no config.yaml; train first, or give --config"),
    (["--config", "config.yaml"], "has no weights yet; train, choose an --epoch"),
    (["--config", "config.yaml", "--weights", "nowhere.pth"], "no weights at nowhere.pth"),
    (["--config", "config.yaml", "--weights", "weights.safetensors", "model.text_width=64"],
     "does not fit model.vit=tiny"),
])
def test_a_mistake_says_the_next_step(tmp_path, arguments, message):
    with pytest.raises(UserError) as error:
        main(["--run", str(tmp_path / "run"), *arguments])
    assert message in str(error.value)
