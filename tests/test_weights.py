"""Weights in and out, and what is refused."""

from __future__ import annotations

import dataclasses
import pickle

import pytest
import ruamel.yaml
import torch

from blip_art.config import ModelConfig
from blip_art.errors import UserError
from blip_art.model.captioner import build_captioner
from blip_art.model.tokenizer import CaptionTokenizer, train_vocabulary
from blip_art.model.weights import load_weights, resize_positions, save_weights, saved_model_config

CONFIG = ModelConfig(vit="tiny", image_size=64, text_width=32, text_layers=1, text_heads=2)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CaptionTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_vocabulary(["a picture of sun"], folder, 60)
    return CaptionTokenizer(str(folder))


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(3)
    return build_captioner(CONFIG, tokenizer)


@pytest.fixture
def fresh(tokenizer):
    torch.manual_seed(4)
    return build_captioner(CONFIG, tokenizer)


def same(a, b) -> bool:
    return all(torch.equal(x, b.state_dict()[name]) for name, x in a.state_dict().items())


def test_safetensors_round_trip_carries_the_configuration(model, fresh, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(model, path)
    load_weights(fresh, str(path))
    assert same(model, fresh)
    assert saved_model_config(path) == CONFIG


def as_original(model) -> dict[str, torch.Tensor]:
    """A state dict as salesforce/BLIP saves it: position_ids in, no token types."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()
             if "token_type" not in name}
    state["text_decoder.bert.embeddings.position_ids"] = torch.arange(512)[None]
    return state


def test_an_original_checkpoint_loads(model, fresh, tmp_path):
    torch.save({"model": as_original(model)}, tmp_path / "model.pth")
    load_weights(fresh, str(tmp_path / "model.pth"))
    assert same(model, fresh)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_checkpoint_with_a_pickled_ruamel_config_loads(model, fresh, tmp_path, zipped):
    yaml = ruamel.yaml.YAML()
    config = yaml.load("vit: 'base'  # size\ninit_lr: 1e-4\nprompt: 'a picture of '\nx: [1, 2.5]\n")
    optimizer = torch.optim.AdamW(model.parameters())
    torch.save({"model": as_original(model), "optimizer": optimizer.state_dict(),
                "config": config, "epoch": 3}, tmp_path / "checkpoint_best_art.pth",
               _use_new_zipfile_serialization=zipped)
    load_weights(fresh, str(tmp_path / "checkpoint_best_art.pth"))
    assert same(model, fresh)


class Evil:
    def __reduce__(self):
        return print, ("code was run",)


def test_a_checkpoint_that_names_code_is_refused(fresh, tmp_path, capsys):
    torch.save({"model": {}, "config": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(UserError, match=r"wants to run __builtin__\.print"):
        load_weights(fresh, str(tmp_path / "evil.pth"))
    assert capsys.readouterr().out == ""


def test_a_pickle_that_is_no_checkpoint_is_refused(fresh, tmp_path):
    (tmp_path / "list.pth").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(UserError, match=r"list\.pth"):
        load_weights(fresh, str(tmp_path / "list.pth"))


@pytest.mark.parametrize("name", ["model.pth", "model.safetensors"])
def test_a_file_cut_short_is_named(model, fresh, tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save({"model": as_original(model)}, path)
    else:
        save_weights(model, path)
    path.write_bytes(path.read_bytes()[:-100_000])
    with pytest.raises(UserError, match="cut short"):
        load_weights(fresh, str(path))


def test_a_pretraining_checkpoint_is_refused(model, fresh, tmp_path):
    state = {**as_original(model), "text_encoder.embeddings.x": torch.zeros(1),
             "image_queue": torch.zeros(1)}
    torch.save({"model": state}, tmp_path / "model_base.pth")
    with pytest.raises(UserError, match=r"pre-training.*image_queue, text_encoder\."):
        load_weights(fresh, str(tmp_path / "model_base.pth"))


def test_another_architecture_names_keys_and_shapes(model, tokenizer, tmp_path):
    save_weights(model, tmp_path / "w.safetensors")
    other = build_captioner(dataclasses.replace(CONFIG, text_layers=2, text_width=64), tokenizer)
    with pytest.raises(UserError, match=r"missing \(text_decoder\.bert\.encoder\.layer\.1.*"
                                        r"of another shape \(.*\(32,\) for \(64,\)"):
        load_weights(other, str(tmp_path / "w.safetensors"))


def test_a_missing_file_says_how_to_get_it(fresh):
    with pytest.raises(UserError, match="no weights at nowhere.pth"):
        load_weights(fresh, "nowhere.pth")
    with pytest.raises(UserError, match="hf download Salesforce/nothing-here"):
        load_weights(fresh, "Salesforce/nothing-here")


def test_positions_grow_from_224_to_384_pixels(model, tokenizer, tmp_path):
    save_weights(model, tmp_path / "w.safetensors")
    larger = build_captioner(dataclasses.replace(CONFIG, image_size=96), tokenizer)
    load_weights(larger, str(tmp_path / "w.safetensors"))
    grown = resize_positions(torch.arange(1 + 14 * 14.0)[None, :, None], 1 + 24 * 24)
    assert grown.shape == (1, 577, 1)
    assert grown[0, 0] == 0  # the class token's is kept
    # Bicubic keeps order and range of a ramp, so rows still rise from first to last.
    assert torch.all(grown[0, 1:].view(24, 24).diff(dim=0) > 0)
