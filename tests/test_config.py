"""The configuration: read, overridden, and refused early."""

from __future__ import annotations

from pathlib import Path

import pytest

from blip_art.config import (
    Config,
    config_from_dict,
    config_to_dict,
    differences,
    dump_config,
    load_config,
    load_run_config,
)
from blip_art.errors import UserError
from blip_art.strict_yaml import parse_yaml

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_shipped_configuration_is_valid(path):
    assert load_config(path).name == path.stem


def test_it_survives_a_round_trip(tmp_path):
    config = config_from_dict({"seed": 7, "generate": {"splits": ["val", "test"]}})
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_a_run_that_was_made_with_what_is_now_out_of_limits_can_still_be_read(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(f"seed: {2**40}\ndata:\n  max_words: 1000000\n")
    assert load_run_config(path).seed == 2**40
    for load, overrides in ((load_config, ()), (load_run_config, ["generate.num_beams=2"])):
        with pytest.raises(UserError, match="seed must be from 0 to"):
            load(path, overrides)
    path.write_text("seed: many\n")
    with pytest.raises(UserError, match="seed must be a whole number"):
        load_run_config(path)


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
    ("train: {batch_size: -1}", "train.batch_size must be from 1 to 1000000, not -1"),
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
    ("train: {lr: 1e-4}\nseed: 1\ntrain: {epochs: 2}", "c.yaml, line 3: 'train' is there twice"),
    ("data:\n  val: a.json\n  val: b.json", "c.yaml, line 3: 'val' is there twice; keep one"),
    ("seed: 010", "seed must be a whole number, not '010'"),
    ("seed: 1_000", "seed must be a whole number, not '1_000'"),
    ("train: {save_every_min: 1:30}", "save_every_min must be a number, not '1:30'"),
    ("train: {lr: .nan}", "train.lr must be a number, not '.nan'"),
    ("generate: {length_penalty: -.inf}", "length_penalty must be a number, not '-.inf'"),
    ("generate: {repetition_penalty: 1e999}", "repetition_penalty must be a finite number"),
    ("train: {weight_decay: 1e308}", "train.weight_decay must be from 0 to 1000, not 1e+308"),
    ("train: {lr: 1" + 90 * "0" + "}", "train.lr must be above 0 and at most 1000, not 1e+90"),
    ("seed: 18446744073709551615", "seed must be from 0 to 4294967295, not 18446744073709551615"),
    ("generate: {num_beams: 100000}", "generate.num_beams must be from 1 to 1000, not 100000"),
    ("generate: {splits: []}", "generate.splits must be some of val, test"),
    ("name: ''", "name must be one folder's name"),
    ("name: ../../elsewhere", "name must be one folder's name"),
    ("name: /tmp", "name must be one folder's name"),
    ("name: " + 70 * "画", "name must be one folder's name, or some as a/b: no dot in front"),
    ("name: a/../b", "name must be one folder's name"),
    ("name: a//b", "name must be one folder's name"),
    ("data: {val: " + 300 * "x" + "}", "data.val must be a path of at most"),
    ('model: {prompt: "\\0"}', "model.prompt must be text without NUL"),
    ('model: {prompt: "\\ud83d"}', "model.prompt must be text without NUL and halves"),
    ('"a\\nb": 1', "unknown key 'a\\nb'; valid keys: name, seed,"),
    ("seed: !!int 0o17", "c.yaml, line 1: no !!int is read"),
    ("a: &a [*a]", "c.yaml, line 1: nested deeper than 20"),
    ("[" * 100_000, "c.yaml: not valid YAML (nested too deep)"),
])
def test_a_mistake_is_answered_with_the_next_step(tmp_path, text, message):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError) as error:
        load_config(tmp_path / "c.yaml")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) - len(str(tmp_path)) < 300


@pytest.mark.timeout(10)
@pytest.mark.parametrize("line", ["{0}: &{0} [{1}]", "{0}: &{0} {{<<: [{1}]}}"])
def test_aliases_that_unfold_to_billions_are_refused(tmp_path, line):
    """Ten lines, each of which names the one before nine times."""
    (tmp_path / "c.yaml").write_text("a: &a {x: 1}\n" + "".join(
        line.format(letter, ", ".join(["*" + before] * 9)) + "\n"
        for before, letter in zip("abcdefghi", "bcdefghij", strict=True)))
    with pytest.raises(UserError, match="its aliases unfold to more than 100000 values"):
        load_config(tmp_path / "c.yaml")


def test_a_large_file_is_refused_unread(tmp_path):
    (tmp_path / "c.yaml").write_text("#\n" * 200_000)
    with pytest.raises(UserError, match="is it the right file"):
        load_config(tmp_path / "c.yaml")


def test_aliases_and_merged_sections_are_read(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "data: &names {val: &list a.json, test: *list}\nmodel: {prompt: &other 010}\n")
    config = load_config(tmp_path / "c.yaml")
    assert (config.data.val, config.data.test, config.model.prompt) == ("a.json", "a.json", "010")
    assert parse_yaml("a: &a {x: 1}\nb: {<<: *a, x: 2}", "") == {"a": {"x": 1}, "b": {"x": 2}}


def test_what_looks_like_a_number_or_date_stays_the_text_that_was_written(tmp_path):
    for text in ("010", "1:30:00", "2024-01-01", "0x1f", "off", "1_000"):
        (tmp_path / "c.yaml").write_text(f"name: {text}")
        assert load_config(tmp_path / "c.yaml").name == text


def test_a_run_may_have_its_name_in_a_folder_of_runs(tmp_path):
    (tmp_path / "c.yaml").write_text("name: art/joined\ntrain: {grad_checkpointing: Yes}\n")
    config = load_config(tmp_path / "c.yaml")
    assert (config.name, config.train.grad_checkpointing) == ("art/joined", True)


def test_a_section_without_keys_is_all_defaults(tmp_path):
    (tmp_path / "c.yaml").write_text("train:\n  # lr: 1e-4\n")
    assert load_config(tmp_path / "c.yaml") == Config()
    assert load_config(tmp_path / "c.yaml", ["train.epochs=3"]).train.epochs == 3


def test_the_options_are_these():
    """Each is for ever: a new one needs a sentence on what it replaces."""
    assert {section: sorted(values) if isinstance(values, dict) else ""
            for section, values in config_to_dict(Config()).items()} == {
        "name": "", "seed": "", "output_file": "",
        "data": ["annotations", "bad_pictures", "images", "max_words", "num_workers", "test",
                 "test_gt", "train", "val", "val_gt"],
        "model": ["dropout", "image_size", "label_smoothing", "max_tokens", "pretrained", "prompt",
                  "text_heads", "text_layers", "text_width", "tokenizer", "vit"],
        "train": ["accumulate", "amp", "batch_size", "clip_norm", "compile", "ema_decay", "epochs",
                  "grad_checkpointing", "keep", "layer_decay", "lr", "min_lr", "save_every_min",
                  "schedule", "warmup_steps", "weight_decay"],
        "generate": ["batch_size", "captions", "diversity", "length_penalty", "max_length",
                     "method", "min_length", "num_beams", "repetition_penalty", "splits", "top_p"],
        "score": ["best", "metrics"]}


@pytest.mark.parametrize("override", [
    "train.lr", "=3", "seed.x=1", "train={lr: 1}", "train=3", "train.lr={a: 1, a: 2}",
    "seed=" + "[" * 3000])
def test_a_malformed_override_is_named(tmp_path, override):
    (tmp_path / "c.yaml").write_text("seed: 1\ntrain: {epochs: 2}")
    with pytest.raises(UserError, match="override '") as error:
        load_config(tmp_path / "c.yaml", [override])
    assert len(str(error.value)) < 300


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match="cannot read configuration nowhere.yaml"):
        load_config("nowhere.yaml")
