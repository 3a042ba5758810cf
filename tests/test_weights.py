"""Weights in and out, and what is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pickle
import random
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import ruamel.yaml
import torch
from safetensors import safe_open

from blip_art.config import ModelConfig
from blip_art.errors import UserError
from blip_art.model.captioner import build_captioner
from blip_art.model.tokenizer import CaptionTokenizer, train_vocabulary
from blip_art.model.weights import load_weights, resize_positions, save_weights

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
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["blip_art"])
    assert header["model"] == dataclasses.asdict(CONFIG)


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


LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)


def rezipped(path: Path, change: Callable[[str, bytes], bytes | None],
             compression: int = zipfile.ZIP_STORED) -> None:
    """Write the records of a .pth again, changed or left out, with checksums that are right."""
    with zipfile.ZipFile(path) as old:
        records = [(name, change(name, old.read(name))) for name in old.namelist()]
    with zipfile.ZipFile(path, "w", compression) as new:
        for name, content in records:
            if content is not None:
                new.writestr(name, content)


def pth(name: str, tensor: torch.Tensor) -> Callable[[Path], None]:
    """One parameter of a whole checkpoint is another tensor."""
    def damage(path: Path) -> None:
        torch.save({"model": {**torch.load(path)["model"], name: tensor}}, path)
    return damage


def header(path: Path, text: bytes, length: int | None = None) -> None:
    """A safetensors file of this header and no tensors."""
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text)


def replace_by(path: Path, make: Callable[[Path], None]) -> None:
    path.unlink(missing_ok=True)
    make(path)


def entry(dtype: str, shape: list[int], size: int) -> bytes:
    return json.dumps({"a": {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}}).encode()


POSITIONS = "visual_encoder.pos_embed"
HOSTILE: dict[str, Callable[[Path], object]] = {
    "2 GB in ten bytes.pth": lambda p: p.write_bytes(b"\x80\x02}r\x00\x00\x00\x08.."),
    "long string.pth": lambda p: p.write_bytes(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f"),
    "long number.pth": lambda p: p.write_bytes(b"\x80\x02\x8b\xff\xff\xff\x7f."),
    "nothing.pth": lambda p: p.write_bytes(b""),
    "text.pth": lambda p: p.write_text("<html>404</html>"),
    "empty stack.pth": lambda p: p.write_bytes(b"\x80\x020."),
    "no memo.pth": lambda p: p.write_bytes(b"\x80\x02h\x07."),
    "unhashable.pth": lambda p: p.write_bytes(LEGACY + b"\x80\x02}]Ns."),
    "list as key.pth": lambda p: torch.save({"model": {3: torch.zeros(1)}}, p),
    "odd storage.pth": lambda p: p.write_bytes(LEGACY + b"\x80\x02NQ."),
    "call.pth": lambda p: p.write_bytes(LEGACY + b"\x80\x02cbuiltins\nint\n(]tR."),
    "state of a number.pth": lambda p: p.write_bytes(LEGACY + b"\x80\x02K\x01}b."),
    "record cut.pth": lambda p: rezipped(p, lambda n, c: c[:-8] if "/data/" in n else c),
    "record gone.pth": lambda p: rezipped(p, lambda n, c: None if n.endswith("/data/3") else c),
    "no pickle.pth": lambda p: rezipped(p, lambda n, c: None if n.endswith(".pkl") else c),
    "program.pth": lambda p: rezipped(
        p, lambda n, c: c, compression=zipfile.ZIP_DEFLATED),
    "one number.pth": pth(POSITIONS, torch.zeros(1).expand(1, 1 + 10**8, 32)),
    "no grid.pth": pth(POSITIONS, torch.zeros(1, 4, 32)),
    "flat.pth": pth(POSITIONS, torch.zeros(())),
    "whole numbers.pth": pth(POSITIONS, torch.zeros(1, 17, 32).long()),
    "complex.pth": pth(POSITIONS, torch.zeros(1, 17, 32).to(torch.complex64)),
    "no header.safetensors": lambda p: p.write_bytes(b"\x08"),
    "long header.safetensors": lambda p: header(p, b"{}", 2**62),
    "no JSON.safetensors": lambda p: header(p, b"{{{{"),
    "list.safetensors": lambda p: header(p, b"[1]"),
    "deep.safetensors": lambda p: header(p, b"[" * 100_000),
    "odd type.safetensors": lambda p: header(p, entry("Q7", [1], 0)),
    "unknown type.safetensors": lambda p: header(p, entry("F4", [2], 1) + b"\0"),
    "too large.safetensors": lambda p: header(p, entry("F32", [2**40, 2**40], 4)),
    "offsets.safetensors": lambda p: header(p, entry("F32", [2**31], 2**33)),
    "folder.safetensors": lambda p: replace_by(p, os.mkdir),
    "folder.pth": lambda p: replace_by(p, os.mkdir),
    "pipe.safetensors": lambda p: replace_by(p, os.mkfifo),
    "pipe.pth": lambda p: replace_by(p, os.mkfifo),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_weights_are_refused_in_one_line(model, fresh, tmp_path, name):
    path = tmp_path / name
    if path.suffix == ".pth":
        torch.save({"model": as_original(model)}, path)
    HOSTILE[name](path)
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=re.escape(str(path))) as refused:
            load_weights(fresh, str(path))
        assert tracemalloc.get_traced_memory()[1] < 100e6
    finally:
        tracemalloc.stop()
    assert "\n" not in str(refused.value)


def test_a_folder_with_an_odd_configuration_is_refused(fresh, tmp_path):
    for text in ("[1]", '{"model_type": 3}', "{", '{"model_type": "bert"}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=re.escape(str(tmp_path))):
            load_weights(fresh, str(tmp_path))


@pytest.mark.parametrize("seed", range(20))
def test_damaged_downloads_load_the_same_or_say_so(model, fresh, tmp_path, seed):
    """Random bytes over the pickle of a .pth, behind a checksum that is right."""
    rng, path = random.Random(seed), tmp_path / "model.pth"
    torch.save({"model": as_original(model)}, path)

    def scribble(name: str, content: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return content
        changed = bytearray(content)
        for _ in range(3):
            changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed)
    rezipped(path, scribble)
    with contextlib.suppress(UserError):
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


def test_a_name_that_no_file_can_have_is_refused(fresh):
    for suffix in ("", ".pth", ".safetensors"):
        with pytest.raises(UserError, match="cannot read weights at .*: File name too long"):
            load_weights(fresh, "n" * 300 + suffix)


def test_positions_grow_from_224_to_384_pixels(model, tokenizer, tmp_path):
    save_weights(model, tmp_path / "w.safetensors")
    larger = build_captioner(dataclasses.replace(CONFIG, image_size=96), tokenizer)
    load_weights(larger, str(tmp_path / "w.safetensors"))
    grown = resize_positions(torch.arange(1 + 14 * 14.0)[None, :, None], 1 + 24 * 24)
    assert grown.shape == (1, 577, 1)
    assert grown[0, 0] == 0  # the class token's is kept
    # Bicubic keeps order and range of a ramp, so rows still rise from first to last.
    assert torch.all(grown[0, 1:].view(24, 24).diff(dim=0) > 0)
