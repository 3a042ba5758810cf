"""The configuration: read, overridden, and refused early."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip_art.config import Config, config_from_dict, differences, dump_config, load_config
from blip_art.errors import UserError

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path):
    assert load_config(path).name == path.stem


def test_it_survives_a_round_trip(tmp_path):
    config = config_from_dict({"seed": 7, "generate": {"splits": ["val", "test"]}})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_overrides_win_and_are_typed(tmp_path):
    (tmp_path / "c.yaml").write_text("train:\n  lr: 1e-4\n")
    config = load_config(tmp_path / "c.yaml", [
        "train.lr=2e-5", "train.epochs=3", "generate.splits=val,test", "model.pretrained=",
        "data.num_workers=0", "train.grad_checkpointing=false"])
    assert (config.train.lr, config.train.epochs) == (2e-5, 3)
    assert config.generate.splits == ("val", "test")
    assert config.model.pretrained == ""
    assert config.data.num_workers == 0
    assert config.train.grad_checkpointing is False


def test_an_empty_file_is_all_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("# nothing yet")
    assert load_config(tmp_path / "c.yaml") == Config()


def test_differences_name_the_keys():
    old, new = Config(seed=1), Config(seed=2, name="other")
    assert differences(old, new, skip=["name"]) == ["seed: 1 → 2"]


def test_off_is_a_text_and_on_a_switch(tmp_path):
    (tmp_path / "c.yaml").write_text("train: {amp: off, grad_checkpointing: on}")
    train = load_config(tmp_path / "c.yaml").train
    assert (train.amp, train.grad_checkpointing) == ("off", True)
    train = load_config(tmp_path / "c.yaml", ["train.amp=off", "train.grad_checkpointing=no"]).train
    assert (train.amp, train.grad_checkpointing) == ("off", False)


@pytest.mark.parametrize(("text", "message"), [
    ("train: {batch_size: -1}", "train.batch_size must be greater than 0, not -1"),
    ("train: {batch_size: many}", "train.batch_size must be a whole number, not 'many'"),
    ("train: {batchsize: 4}", "unknown key 'train.batchsize'; did you mean 'train.batch_size'?"),
    ("batch_size: 4", "unknown key 'batch_size'; did you mean 'train.batch_size'?"),
    ("init_lr: 1e-4", "unknown key 'init_lr'; here it is called 'train.lr'"),
    ("train: {epochs: true}", "train.epochs must be a whole number, not True"),
    ("train: 3", "'train' must be a section of keys, not 3"),
    ("train: [unclosed", "line 1: not valid YAML"),
    ("- a list", "must hold 'key: value' lines, not list"),
    ("model: {image_size: 100}", "model.image_size must be a multiple of 16"),
    ("generate: {captions: 5}", "generate.captions must be at most generate.num_beams"),
    ("score: {best: bleu}", "score.best must be one of cider+bleu_4, spice, cider, not 'bleu'"),
])
def test_a_mistake_is_answered_with_the_next_step(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "c.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("override", ["train.lr", "=3", "seed.x=1"])
def test_a_malformed_override_is_named(tmp_path, override):
    (tmp_path / "c.yaml").write_text("seed: 1")
    with pytest.raises(UserError, match="override '"):
        load_config(tmp_path / "c.yaml", [override])


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match="cannot read configuration nowhere.yaml"):
        load_config("nowhere.yaml")
