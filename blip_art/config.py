"""The configuration: frozen dataclasses filled from YAML and `key=value`, checked early.

    config = load_config("configs/caption_art.yaml", ["train.batch_size=16"])
"""

from __future__ import annotations

import copy
import dataclasses
import difflib
import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterable, List, Tuple, Union, get_args, get_origin, get_type_hints

import yaml

from blip_art.errors import UserError
from blip_art.files import PathLike
from blip_art.run_state import BEST_RULES

VIT_SIZES = ("tiny", "base", "large")
METRIC_NAMES = ("bleu", "meteor", "rouge_l", "cider", "spice")
# What the original project's flat configuration called them.
_ORIGINAL_NAMES = {"init_lr": "train.lr", "max_epoch": "train.epochs", "image_root": "data.images",
                   "ann_root": "data.annotations", "coco_gt_root": "data.val_gt",
                   "vit_grad_ckpt": "train.grad_checkpointing"}
# Settings that may change between two starts of a run without changing what it computes.
HARMLESS = ("name", "output_file", "data.num_workers", "data.bad_pictures",
            "train.save_every_min", "train.keep", "score.metrics", "score.best")


@dataclass(frozen=True)
class DataConfig:
    """Where pictures and captions are."""

    images: str = "Dataset"
    """Folder that the annotations' `image` entries are relative to."""
    annotations: str = "annotation"
    """Folder that holds the files named below."""
    train: str = "iconclassTrain.json"
    """Training pairs: a list of {image, caption, image_id} (JSON, JSONL or CSV)."""
    val: str = "iconclassVal.json"
    """Validation pairs; a picture that is named several times is captioned once."""
    test: str = "iconclassTest.json"
    """Test pairs."""
    val_gt: str = ""
    """COCO ground truth that validation captions are scored against; '' makes it from `val`."""
    test_gt: str = ""
    """The same for the test split; '' makes it from `test`."""
    max_words: int = 30
    """Training captions are cut to this many words before they are tokenized."""
    bad_pictures: str = "fail"
    """What a missing or unreadable picture does: 'fail' before the run, or 'skip' it. One that
    becomes unreadable in training ends the run, or the next pair takes its place ('skip')."""
    num_workers: int = 4
    """Loader processes a rank; 0 loads in the training process."""


@dataclass(frozen=True)
class ModelConfig:
    """The captioner."""

    vit: str = "base"
    """Vision encoder: tiny, base or large."""
    image_size: int = 384
    """Pixels a side; must be a multiple of 16."""
    pretrained: str = ""
    """Weights to start from: .pth, .safetensors, a hub folder or name; '' starts at random."""
    tokenizer: str = "bert-base-uncased"
    """Folder with a BERT vocabulary, or a hub name that is already in the local cache."""
    prompt: str = "a picture of "
    """Words that every caption starts with; they carry no loss."""
    max_tokens: int = 40
    """Training captions are cut to this many tokens, prompt included."""
    label_smoothing: float = 0.1
    """Share of the target spread over the vocabulary."""
    dropout: float = 0.1
    """Dropout of the text decoder, in hidden states and attention."""
    text_width: int = 768
    """Hidden size of the text decoder."""
    text_layers: int = 12
    """Layers of the text decoder."""
    text_heads: int = 12
    """Attention heads of the text decoder."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimization."""

    epochs: int = 10
    """Passes over the training pairs."""
    batch_size: int = 32
    """Pairs a GPU and step."""
    lr: float = 1e-5
    """Highest learning rate."""
    min_lr: float = 0.0
    """Lowest learning rate of the cosine."""
    weight_decay: float = 0.05
    """AdamW's weight decay."""
    schedule: str = "epoch"
    """'epoch' sets the cosine once an epoch, as the original; 'step' at every step."""
    warmup_steps: int = 0
    """Steps of linear warm-up ('step' only)."""
    layer_decay: float = 1.0
    """Learning rate factor from one ViT block to the block below; 1 is none."""
    accumulate: int = 1
    """Steps whose gradients are added before the optimizer moves."""
    clip_norm: float = 0.0
    """Largest gradient norm; 0 does not clip."""
    amp: str = "auto"
    """auto (bf16 where the hardware has it, fp16 on older GPUs, off on CPU; captions in fp16 on any
    GPU), off, fp16, bf16."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    compile: str = ""
    """Backend of torch.compile for encoder and decoder; '' compiles nothing. 'cudagraphs' spares
    the host most of its work for one GPU, after some 12 s; not with train.accumulate, nor yet with
    several GPUs. 'inductor' also makes few operations of many, after a minute, and needs a C
    compiler. Texts are padded to multiples of 8, so that few lengths are compiled."""
    ema_decay: float = 0.0
    """Decay of an exponential moving average of the weights, which then is what is evaluated."""
    save_every_min: float = 10.0
    """Minutes between checkpoints inside an epoch."""
    keep: str = "best_last"
    """Weights that stay on disk: 'best_last' or 'all'."""


@dataclass(frozen=True)
class GenerateConfig:
    """How captions are decoded."""

    splits: Tuple[str, ...] = ("val",)
    """Splits that are captioned after each epoch."""
    batch_size: int = 32
    """Pictures a GPU and batch."""
    method: str = "beam"
    """beam, nucleus or diverse (beams in groups that avoid each other's words)."""
    captions: int = 1
    """Candidates a picture; more than one are merged into the caption."""
    num_beams: int = 3
    """Width of the beam search."""
    max_length: int = 20
    """Most tokens of a caption, prompt included."""
    min_length: int = 5
    """Fewest tokens of a caption, prompt included."""
    top_p: float = 0.9
    """Nucleus sampling keeps the most likely tokens up to this probability."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that were already written less likely (CTRL, Keskar et al. 2019)."""
    length_penalty: float = 1.0
    """Beam scores are divided by length to this power."""
    diversity: float = 1.0
    """Penalty of 'diverse' on a word another group has just chosen."""


@dataclass(frozen=True)
class ScoreConfig:
    """How captions are scored."""

    metrics: Tuple[str, ...] = METRIC_NAMES
    """Which of bleu, meteor, rouge_l, cider, spice."""
    best: str = "cider+bleu_4"
    """Rule that chooses the best epoch on val: cider+bleu_4 (the original's), cider or spice."""


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str = "run"
    """Name of the run folder unless the command gives one."""
    seed: int = 42
    """Seed of weights, data order, augmentation and sampling."""
    output_file: str = ""
    """Where the epoch log is written as text; '' is output.txt in the run folder."""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    generate: GenerateConfig = field(default_factory=GenerateConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)


def load_config(path: PathLike, overrides: Iterable[str] = ()) -> Config:
    """Read a YAML file, apply `section.key=value` overrides, check everything.

    Raises:
        UserError: no such file, not YAML, an unknown key (names the nearest valid one), a value
            of the wrong type or out of range.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot read configuration {path}: {error.strerror}; "
                        "see configs/ for examples") from error
    except UnicodeDecodeError as error:
        raise UserError(f"configuration {path} is not a UTF-8 text file") from error
    values = copy.deepcopy(_parsed(text, str(path)))
    if values is None:  # an empty file: all defaults
        values = {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold 'key: value' lines, not {type(values).__name__}")
    for override in overrides:
        _apply_override(values, override)
    return config_from_dict(values, where=str(path))


def config_from_dict(values: Dict[str, Any], where: str = "configuration") -> Config:
    """Build a checked Config from nested dictionaries."""
    config = _build(Config, values, "", where)
    _check(config, where)
    return config


def config_to_dict(config: Any) -> Dict[str, Any]:
    """Plain dictionaries and lists, ready for YAML or JSON."""
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def dump_config(config: Config) -> str:
    """The configuration as YAML text, every key spelled out."""
    return yaml.safe_dump(config_to_dict(config), sort_keys=False, allow_unicode=True)


def differences(old: Config, new: Config, skip: Iterable[str] = ()) -> List[str]:
    """'section.key: old → new' for every value that differs, but for the keys in `skip`."""
    before, after = _flat(config_to_dict(old)), _flat(config_to_dict(new))
    return [f"{key}: {before[key]!r} → {after[key]!r}"
            for key in before if before[key] != after[key] and key not in set(skip)]


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return config_to_dict(value)
    return list(value) if isinstance(value, tuple) else value


def _flat(values: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict)
                    else {prefix + key: value})
    return flat


class _Loader(yaml.SafeLoader):
    """YAML 1.1 reads 1e-5 as text and off as a boolean; this takes them for a number and a text, as
    everybody expects."""


# Copied, for the lists are those of all loaders.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag != "tag:yaml.org,2002:bool"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))


@functools.lru_cache(maxsize=8)
def _parsed(text: str, where: str) -> Any:
    """Every run of a sweep reads the same file."""
    return parse_yaml(text, where)


def parse_yaml(text: str, where: str) -> Any:
    """Plain values from YAML text; `where` is named when it is none."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).split("\n")[0]
        raise UserError(f"{where}{line}: not valid YAML ({problem})") from error


def _apply_override(values: Dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"override '{override}' must look like section.key=value, "
                        "for example train.batch_size=16")
    *sections, leaf = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise UserError(f"override '{override}': '{section}' is a value, not a section")
    values[leaf] = parse_yaml(text, f"override '{override}'") if text else ""


def _build(kind: Any, values: Any, prefix: str, where: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}: '{prefix.rstrip('.')}' must be a section of keys, "
                        f"not {values!r}")
    hints = get_type_hints(kind)
    for key in values:
        if key not in hints:
            raise UserError(f"{where}: unknown key '{prefix}{key}'; {_nearest(prefix, str(key))}")
    return kind(**{
        key: _build(hints[key], value, f"{key}.", where)
        if dataclasses.is_dataclass(hints[key])
        else _typed(hints[key], value, f"{where}: {prefix}{key}")
        for key, value in values.items()})


def _nearest(prefix: str, key: str) -> str:
    if key in _ORIGINAL_NAMES:
        return f"here it is called '{_ORIGINAL_NAMES[key]}'"
    valid = list(_flat(config_to_dict(Config())))
    # The original's names are flat; a right leaf in the wrong section is the likeliest slip.
    same_leaf = [name for name in valid if name.split(".")[-1] == key]
    close = difflib.get_close_matches(prefix + key, valid, 1, 0.6)
    by_leaf = difflib.get_close_matches(key, [name.split(".")[-1] for name in valid], 1, 0.6)
    close = same_leaf or close or [name for name in valid if name.split(".")[-1] in by_leaf]
    return f"did you mean '{close[0]}'?" if close else f"valid keys: {', '.join(valid)}"


_SWITCHES = {"on": True, "yes": True, "off": False, "no": False}


def _typed(hint: Any, value: Any, where: str) -> Any:
    """`value` as the type of the field, or a UserError that names both."""
    if get_origin(hint) is tuple:
        items = value if isinstance(value, (list, tuple)) else str(value).split(",")
        return tuple(_typed(get_args(hint)[0], item, where) for item in items)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and value is None:
        return ""
    if hint is bool and isinstance(value, str) and value in _SWITCHES:
        return _SWITCHES[value]
    if hint is str and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise UserError(f"{where} must be {_TYPE_NAMES[hint]}, not {value!r}")
    return value


_TYPE_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def _check(config: Config, where: str) -> None:
    """Refuse values that would fail hours later.

    Raises:
        UserError: names the key, the value and what is allowed.
    """
    def need(ok: bool, key: str, rule: str) -> None:
        if not ok:
            value: Any = config
            for part in key.split("."):
                value = getattr(value, part)
            raise UserError(f"{where}: {key} must be {rule}, not {value!r}")

    def one_of(key: str, value: str, allowed: Iterable[str]) -> None:
        need(value in set(allowed), key, "one of " + ", ".join(allowed))

    data, model, train, generate = config.data, config.model, config.train, config.generate
    positive: Dict[str, Union[int, float]] = {
        "data.max_words": data.max_words, "model.image_size": model.image_size,
        "model.max_tokens": model.max_tokens, "model.text_width": model.text_width,
        "model.text_layers": model.text_layers, "model.text_heads": model.text_heads,
        "train.epochs": train.epochs, "train.batch_size": train.batch_size, "train.lr": train.lr,
        "train.accumulate": train.accumulate, "train.save_every_min": train.save_every_min,
        "generate.batch_size": generate.batch_size, "generate.num_beams": generate.num_beams,
        "generate.captions": generate.captions, "generate.max_length": generate.max_length,
        "generate.repetition_penalty": generate.repetition_penalty}
    for key, number in positive.items():
        need(number > 0, key, "greater than 0")
    not_negative: Dict[str, Union[int, float]] = {
        "seed": config.seed, "data.num_workers": data.num_workers, "train.min_lr": train.min_lr,
        "train.weight_decay": train.weight_decay, "train.warmup_steps": train.warmup_steps,
        "train.clip_norm": train.clip_norm, "generate.min_length": generate.min_length,
        "generate.diversity": generate.diversity}
    for key, number in not_negative.items():
        need(number >= 0, key, "0 or more")
    for key, share in {"model.label_smoothing": model.label_smoothing,
                       "model.dropout": model.dropout, "train.ema_decay": train.ema_decay}.items():
        need(0 <= share < 1, key, "at least 0 and below 1")
    need(0 < train.layer_decay <= 1, "train.layer_decay", "above 0 and at most 1")
    need(0 < generate.top_p <= 1, "generate.top_p", "above 0 and at most 1")
    need(model.image_size % 16 == 0, "model.image_size", "a multiple of 16 (the patch size)")
    need(model.text_width % model.text_heads == 0, "model.text_width",
         "a multiple of model.text_heads")
    need(generate.min_length <= generate.max_length, "generate.min_length",
         "at most generate.max_length")
    need(generate.method != "beam" or generate.captions <= generate.num_beams,
         "generate.captions", "at most generate.num_beams for method 'beam'")
    one_of("model.vit", model.vit, VIT_SIZES)
    one_of("data.bad_pictures", data.bad_pictures, ("fail", "skip"))
    one_of("train.schedule", train.schedule, ("epoch", "step"))
    one_of("train.amp", train.amp, ("auto", "off", "fp16", "bf16"))
    need(train.compile != "cudagraphs" or train.accumulate == 1, "train.accumulate",
         "1 where train.compile is 'cudagraphs'")
    one_of("train.keep", train.keep, ("best_last", "all"))
    one_of("generate.method", generate.method, ("beam", "nucleus", "diverse"))
    one_of("score.best", config.score.best, BEST_RULES)
    need(bool(generate.splits) and set(generate.splits) <= {"val", "test"}, "generate.splits",
         "val, test or both")
    need(bool(config.score.metrics) and set(config.score.metrics) <= set(METRIC_NAMES),
         "score.metrics", "some of " + ", ".join(METRIC_NAMES))
