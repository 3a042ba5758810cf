"""The configuration: frozen dataclasses filled from YAML and `key=value`, checked early.

    config = load_config("configs/caption_art.yaml", ["train.batch_size=16"])
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Dict, Iterable, List, Tuple

import yaml

from blip_art.errors import UserError, quoted
from blip_art.files import PathLike
from blip_art.run_state import BEST_RULES
from blip_art.schema import build, limited, refuse
from blip_art.strict_yaml import parse_yaml, read_yaml

VIT_SIZES = ("tiny", "base", "large")
MAX_TOKENS = 512  # BERT has no positions beyond
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

    images: str = limited("Dataset", path=True)
    """Folder that the annotations' `image` entries are relative to."""
    annotations: str = limited("annotation", path=True)
    """Folder that holds the files named below."""
    train: str = limited("iconclassTrain.json", path=True)
    """Training pairs: a list of {image, caption, image_id} (JSON, JSONL or CSV)."""
    val: str = limited("iconclassVal.json", path=True)
    """Validation pairs; a picture that is named several times is captioned once."""
    test: str = limited("iconclassTest.json", path=True)
    """Test pairs."""
    val_gt: str = limited("", path=True)
    """COCO ground truth that validation captions are scored against; '' makes it from `val`."""
    test_gt: str = limited("", path=True)
    """The same for the test split; '' makes it from `test`."""
    max_words: int = limited(30, min=1, max=10_000)
    """Training captions are cut to this many words before they are tokenized."""
    bad_pictures: str = limited("fail", choices=("fail", "skip"))
    """What a missing or unreadable picture does: 'fail' before the run, or 'skip' it. One that
    becomes unreadable in training ends the run, or the next pair takes its place ('skip')."""
    num_workers: int = limited(4, min=0, max=1024)
    """Loader processes a rank; 0 loads in the training process."""


@dataclass(frozen=True)
class ModelConfig:
    """The captioner."""

    vit: str = limited("base", choices=VIT_SIZES)
    """Vision encoder: tiny, base or large."""
    image_size: int = limited(384, min=16, max=4096, multiple_of=16)
    """Pixels a side; a multiple of 16, the patch size."""
    pretrained: str = limited("", path=True)
    """Weights to start from: .pth, .safetensors, a hub folder or name; '' starts at random."""
    tokenizer: str = limited("bert-base-uncased", path=True)
    """Folder with a BERT vocabulary, or a hub name that is already in the local cache."""
    prompt: str = "a picture of "
    """Words that every caption starts with; they carry no loss."""
    max_tokens: int = limited(40, min=1, max=MAX_TOKENS)
    """Training captions are cut to this many tokens, prompt included."""
    label_smoothing: float = limited(0.1, min=0, below=1)
    """Share of the target spread over the vocabulary."""
    dropout: float = limited(0.1, min=0, below=1)
    """Dropout of the text decoder, in hidden states and attention."""
    text_width: int = limited(768, min=1, max=65_536)
    """Hidden size of the text decoder."""
    text_layers: int = limited(12, min=1, max=1000)
    """Layers of the text decoder."""
    text_heads: int = limited(12, min=1, max=1000)
    """Attention heads of the text decoder."""


@dataclass(frozen=True)
class TrainConfig:
    """Optimization."""

    epochs: int = limited(10, min=1, max=1_000_000)
    """Passes over the training pairs."""
    batch_size: int = limited(32, min=1, max=1_000_000)
    """Pairs a GPU and step."""
    lr: float = limited(1e-5, above=0, max=1000)
    """Highest learning rate."""
    min_lr: float = limited(0.0, min=0, max=1000)
    """Lowest learning rate of the cosine."""
    weight_decay: float = limited(0.05, min=0, max=1000)
    """AdamW's weight decay."""
    schedule: str = limited("epoch", choices=("epoch", "step"))
    """'epoch' sets the cosine once an epoch, as the original; 'step' at every step."""
    warmup_steps: int = limited(0, min=0, max=10**9)
    """Steps of linear warm-up ('step' only)."""
    layer_decay: float = limited(1.0, above=0, max=1)
    """Learning rate factor from one ViT block to the block below; 1 is none."""
    accumulate: int = limited(1, min=1, max=1_000_000)
    """Steps whose gradients are added before the optimizer moves."""
    clip_norm: float = limited(0.0, min=0, max=10**9)
    """Largest gradient norm; 0 does not clip."""
    amp: str = limited("auto", choices=("auto", "off", "fp16", "bf16"))
    """auto (bf16 where the hardware has it, fp16 on older GPUs, off on CPU; captions in fp16 on any
    GPU), off, fp16, bf16."""
    grad_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""
    compile: str = ""
    """Backend of torch.compile for encoder and decoder; '' compiles nothing. 'cudagraphs' spares
    the host most of its work for one GPU, after some 12 s; not with train.accumulate, nor yet with
    several GPUs. 'inductor' also makes few operations of many, after a minute, and needs a C
    compiler. Texts are padded to multiples of 8, so that few lengths are compiled."""
    ema_decay: float = limited(0.0, min=0, below=1)
    """Decay of an exponential moving average of the weights, which then is what is evaluated."""
    save_every_min: float = limited(10.0, above=0, max=10**6)
    """Minutes between checkpoints inside an epoch."""
    keep: str = limited("best_last", choices=("best_last", "all"))
    """Weights that stay on disk: 'best_last' or 'all'."""


@dataclass(frozen=True)
class GenerateConfig:
    """How captions are decoded."""

    splits: Tuple[str, ...] = limited(("val",), choices=("val", "test"))
    """Splits that are captioned after each epoch."""
    batch_size: int = limited(32, min=1, max=1_000_000)
    """Pictures a GPU and batch."""
    method: str = limited("beam", choices=("beam", "nucleus", "diverse"))
    """beam, nucleus or diverse (beams in groups that avoid each other's words)."""
    captions: int = limited(1, min=1, max=1000)
    """Candidates a picture; more than one are merged into the caption."""
    num_beams: int = limited(3, min=1, max=1000)
    """Width of the beam search."""
    max_length: int = limited(20, min=1, max=MAX_TOKENS)
    """Most tokens of a caption, prompt included."""
    min_length: int = limited(5, min=0, max=MAX_TOKENS)
    """Fewest tokens of a caption, prompt included."""
    top_p: float = limited(0.9, above=0, max=1)
    """Nucleus sampling keeps the most likely tokens up to this probability."""
    repetition_penalty: float = limited(1.0, above=0, max=1000)
    """Above 1 makes tokens that were already written less likely (CTRL, Keskar et al. 2019)."""
    length_penalty: float = limited(1.0, min=-10, max=10)
    """Beam scores are divided by length to this power."""
    diversity: float = limited(1.0, min=0, max=1000)
    """Penalty of 'diverse' on a word another group has just chosen."""


@dataclass(frozen=True)
class ScoreConfig:
    """How captions are scored."""

    metrics: Tuple[str, ...] = limited(METRIC_NAMES, choices=METRIC_NAMES)
    """Which of bleu, meteor, rouge_l, cider, spice."""
    best: str = limited("cider+bleu_4", choices=tuple(BEST_RULES))
    """Rule that chooses the best epoch on val: cider+bleu_4 (the original's), cider or spice."""


@dataclass(frozen=True)
class Config:
    """One run."""

    name: str = limited("run", name=True)
    """Name of the run folder unless the command gives one."""
    seed: int = limited(42, min=0, max=2**32 - 1)
    """Seed of weights, data order, augmentation and sampling; what PyTorch and NumPy both take."""
    output_file: str = limited("", path=True)
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
    return config_from_dict(_values(path, overrides), where=str(path))


def load_run_config(path: PathLike, overrides: Iterable[str] = ()) -> Config:
    """The configuration that a run was made with: an older version may have allowed more.

    Without overrides its numbers are held to their types alone.

    Raises:
        UserError: as load_config.
    """
    values = _values(path, overrides)
    if overrides:
        return config_from_dict(values, where=str(path))
    return build(Config, values, str(path), _ORIGINAL_NAMES, limits=False)


def _values(path: PathLike, overrides: Iterable[str]) -> Dict[str, Any]:
    values = read_yaml(path, "configuration", "see configs/ for examples")
    for override in overrides:
        _apply_override(values, override, str(path))
    return values


def config_from_dict(values: Dict[str, Any], where: str = "configuration") -> Config:
    """Build a checked Config from nested dictionaries.

    Raises:
        UserError: an unknown key, a value of the wrong type or out of range.
    """
    config = build(Config, values, where, _ORIGINAL_NAMES)
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
    return [f"{key}: {quoted(before[key], 40)} → {quoted(after[key], 40)}"
            for key in before if before[key] != after[key] and key not in set(skip)]


def first_of(changed: List[str], most: int = 3) -> str:
    """Differences for a message, which must stay one line."""
    more = f"; and {len(changed) - most} more" if len(changed) > most else ""
    return "; ".join(changed[:most]) + more


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


def _apply_override(values: Dict[str, Any], override: str, path: str) -> None:
    key, equals, text = override.partition("=")
    where = f"override {quoted(override)}"
    if not equals or not key:
        raise UserError(f"{where} must look like section.key=value, "
                        "for example train.batch_size=16")
    *sections, leaf = key.split(".")
    for section in sections:
        if values.get(section) is None:
            values[section] = {}
        values = values[section]
        if not isinstance(values, dict):
            raise UserError(f"{where}: '{section}' is a value in {path}, not a section")
    value = parse_yaml(text, where) if text else ""
    if isinstance(value, dict) or isinstance(values.get(leaf), dict):
        raise UserError(f"{where} would replace a whole section; name one key, "
                        "for example train.batch_size=16")
    values[leaf] = value


def _check(config: Config, where: str) -> None:
    """Refuse values that do not go together; what holds for one alone stands beside its field.

    Raises:
        UserError: names the key, the value and what is allowed.
    """
    model, train, generate = config.model, config.train, config.generate
    if model.text_width % model.text_heads:
        refuse(where, "model.text_width", "a multiple of model.text_heads", model.text_width)
    if generate.min_length > generate.max_length:
        refuse(where, "generate.min_length", "at most generate.max_length", generate.min_length)
    if generate.method == "beam" and generate.captions > generate.num_beams:
        refuse(where, "generate.captions", "at most generate.num_beams for method 'beam'",
               generate.captions)
    if train.compile == "cudagraphs" and train.accumulate != 1:
        refuse(where, "train.accumulate", "1 where train.compile is 'cudagraphs'",
               train.accumulate)
