"""Whatever is in a file of a run, a command ends with its result or with one line that names it.

    python -m pytest tests/test_readers_fuzz.py

Each reader gets whole files of which one is damaged: cut off, with other bytes, or with a value of
another type. A new reader is put into READERS, its files into `write_files`.
FUZZ=2000 looks longer.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from blip_art.cluster.record import Submitted, read_jobs, record_jobs
from blip_art.cluster.resume import Changes, job_to_repeat, words_to_repeat
from blip_art.cluster.rows import as_json, shown
from blip_art.cluster.site import load_site
from blip_art.cluster.slurm import Completed, Slurm
from blip_art.cluster.status import find_runs, survey
from blip_art.cluster.sweep import load_sweep
from blip_art.config import config_from_dict, dump_config, load_config
from blip_art.data.datasets import ground_truth, load_pairs
from blip_art.distributed import World
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_jsonl, write_text
from blip_art.manifest import update_manifest
from blip_art.report.tables import read_runs, write_tables
from blip_art.retention import prune_weights
from blip_art.score.baselines import training_list
from blip_art.score.coco import read_captions, read_references
from blip_art.score.run import run_config, write_best
from blip_art.train.setup import open_run, read_train_log
from tests.report_runs import PICTURES, html_of, make_run

ALONE = World(0, 1, torch.device("cpu"))
NO_SLURM = Slurm(lambda argv: Completed(0, ""))
EXAMPLES = int(os.environ.get("FUZZ", "30"))
LISTS = ("train.json", "val.json", "val.jsonl", "val.csv")


def write_files(folder: Path) -> None:
    """A finished run with everything that a run can have, lists, a profile and a sweep."""
    run = make_run(folder / "run", levels=(0.2, 0.5))
    pairs = [{"image": f"{name}.jpg", "caption": text, "image_id": name}
             for name, text in PICTURES.items()]
    for name in LISTS[:2]:
        write_json(folder / name, pairs)
    write_jsonl(folder / LISTS[2], pairs)
    text = io.StringIO()
    rows = csv.DictWriter(text, list(pairs[0]))
    rows.writeheader()
    rows.writerows(pairs)
    write_text(folder / LISTS[3], text.getvalue())
    config = config_from_dict({"data": {
        "annotations": str(folder), "images": str(folder), "train": "train.json",
        "val": "val.json"}})
    write_text(run.config, dump_config(config))
    write_text(folder / "base.yaml", f"data: {{annotations: {folder}, images: {folder}, "
               "train: train.json, val: val.json}\ntrain: {lr: 1e-5}\nname: run\n")
    write_json(run.best, {"epoch": 1, "rule": "cider+bleu_4", "value": 0.5})
    write_json(run.bad_pictures("val"), {"question": {"list": "a"}, "bad": {"x.jpg": "cut off"}})
    record_jobs(run, [Submitted("train", "7", log="a.log", gpus=4, command=("train", "a.yaml"))])
    write_json(folder / "six" / "sweep.json", {"file": "six.yaml", "parallel": 2, "runs": [
        {"run": "runs/six/a", "overrides": ["seed=1"], "config": "base.yaml"}]})
    update_manifest(run, "train", [folder / "train.json"], cwd=str(folder), ranks=1, device="cpu")
    run.checkpoints.mkdir()
    for path in (run.last_checkpoint, run.weights(0), run.weights(1)):
        path.touch()
    write_text(folder / "sweep.yaml", f"config: {folder}/base.yaml\nname: lr\nparallel: 2\n"
               "grid: {train.lr: [1e-5, 1e-4]}\nseeds: [1, 2]\nset: {train.epochs: 2}\n")
    write_text(folder / "site.yaml", "partition: gpu\ngpus_per_node: 4\ntime_min: 60\n"
               "sbatch: {constraint: v100, exclusive: true}\nbinds: [/data]\nhas_sacct: true\n")


def resume(folder: Path) -> None:
    run = RunDir(folder / "run")
    open_run(run, load_config(folder / "base.yaml"), True, ALONE)
    read_train_log(run)


def begin(folder: Path) -> None:
    run = RunDir(folder / "run")
    for path in (*run.checkpoints.iterdir(), *(row.path for row in run.predicted())):
        path.unlink()
    open_run(run, load_config(folder / "base.yaml"), False, ALONE)


def status(folder: Path) -> None:
    rows, notes = survey(find_runs([str(folder / "run")]), NO_SLURM)
    shown(rows, notes).encode()
    as_json(rows, notes)


def again(folder: Path) -> None:
    run = RunDir(folder / "run")
    job = job_to_repeat(run, [])
    if not isinstance(job, str):
        words_to_repeat(run, job, Changes())


def report(folder: Path) -> None:
    write_tables(read_runs([folder / "run"]), folder / "out")
    html_of(folder / "run")


def score(folder: Path) -> None:
    """What scoring reads; the scores themselves need Java."""
    run = RunDir(folder / "run")
    config = run_config(run)
    read_references(run.references("val"))
    for result in run.predicted():
        read_captions(result.path)
    training_list(run, config)
    write_best(run, config.score.best)


def lists(folder: Path) -> None:
    for name in LISTS:
        json.dumps(ground_truth(load_pairs(folder / name, "val")), ensure_ascii=False).encode()


Reader = Callable[[Path], Any]
READERS: dict[str, tuple[Reader, tuple[str, ...]]] = {
    "config": (lambda folder: load_config(folder / "base.yaml"), ("base.yaml",)),
    "site": (lambda folder: load_site(str(folder / "site.yaml")), ("site.yaml",)),
    "sweep": (lambda folder: load_sweep(str(folder / "sweep.yaml")).members(),
              ("sweep.yaml", "base.yaml")),
    "lists": (lists, LISTS),
    "jobs": (lambda folder: read_jobs(RunDir(folder / "run")), ("run/slurm/jobs.json",)),
    "manifest": (lambda folder: update_manifest(folder / "run", "train"), ("run/manifest.json",)),
    "resume": (resume, ("run/config.yaml", "run/manifest.json", "run/train.jsonl")),
    "begin": (begin, ("run/manifest.json",)),
    "sweep_folder": (lambda folder: load_sweep(str(folder / "six")), ("six/sweep.json",)),
    "again": (again,
              ("run/state.json", "run/slurm/jobs.json")),
    "status": (status, ("run/state.json", "run/best.json", "run/train.jsonl", "run/manifest.json",
                        "run/slurm/jobs.json", "run/scores/val_01.json", "run/config.yaml")),
    "report": (report, (
        "run/state.json", "run/best.json", "run/train.jsonl", "run/config.yaml",
        "run/scores/val_00.json", "run/scores/val_01.json", "run/scores/floor_val.json",
        "run/references/val.json", "run/predictions/val_01.json", "run/manifest.json",
        "val.json")),
    "score": (score, ("run/config.yaml", "run/references/val.json", "run/manifest.json",
                      "run/predictions/val_00.json", "run/scores/val_00.json", "run/best.json")),
    "prune": (lambda folder: prune_weights(RunDir(folder / "run"), "best_last"),
              ("run/best.json", "run/scores/val_00.json")),
}
WHOLE = (b"", b"null", b"[]", b"{}", b"3", b'"x"', b"[{}]", b"[[]]", b"NaN", b"[" * 200,
         b"\xff\xfe{\0}\0", b"\xef\xbb\xbf{}", b"\x1f\x8b\x08cut", b"\0\0\0\0", b"a: [",
         b"a,b\n1\n")
OTHERS: tuple[Any, ...] = (
    None, True, -1, 0, 10**30, 10**400, 1e308, float("nan"), float("inf"), "", "x", "..",
    "\ud83d", "\0", "a\nb", "x" * 5000, [], [1], ["x"], [[]], {}, {"a": 1}, {"a": {}},
    [[[[[[[[[[[[[[[[[[[[[[["deep"]]]]]]]]]]]]]]]]]]]]]]])


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a value can be changed: the keys and numbers that lead there."""
    items = (value.items() if isinstance(value, dict) else
             enumerate(value) if isinstance(value, list) else ())
    return [at, *(place for key, item in items for place in places(item, (*at, key)))]


def changed(value: Any, at: tuple[Any, ...], other: Any) -> Any:
    """A copy with another value in one place; without it where that is `...`."""
    if not at:
        return None if other is ... else other
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(at) == 1 and other is ...:
        del copy[at[0]]
    else:
        copy[at[0]] = changed(copy[at[0]], at[1:], other)
    return copy


@st.composite
def damaged(draw: st.DrawFn, name: str, content: bytes) -> bytes:
    """A file's content with one fault."""
    kind = draw(st.sampled_from(["value", "value", "value", "cut", "byte", "whole"]))
    place = draw(st.integers(0, len(content)))
    if kind == "cut":
        return content[:place]
    if kind == "byte":
        new = draw(st.sampled_from([b"", b"\0", b"\xff", b"{", b"]", b'"', b"\n", b"-", b"9" * 20]))
        return content[:place] + new + content[place + 1:]
    if kind == "whole" or name.endswith(".csv"):
        return draw(st.sampled_from(WHOLE))
    other = draw(st.sampled_from([*OTHERS, ...]))
    if name.endswith(".yaml"):
        value = yaml.safe_load(content)
        return yaml.safe_dump(changed(value, draw(st.sampled_from(places(value))), other)).encode()
    if name.endswith(".jsonl"):
        rows = [json.loads(line) for line in content.splitlines()]
        rows = changed(rows, draw(st.sampled_from(places(rows)[1:])), other)
        return "".join(json.dumps(row) + "\n" for row in rows).encode()
    value = json.loads(content)
    return json.dumps(changed(value, draw(st.sampled_from(places(value))), other)).encode()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, bytes]:
    """Every file, and what is in it while it is whole."""
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def restored(whole: dict[Path, bytes]) -> Path:
    """The folder, all files whole again."""
    for path, content in whole.items():
        path.write_bytes(content)
    return next(path.parent for path in whole if path.name == "base.yaml")


@pytest.mark.parametrize("reader", READERS)
def test_whole_files_are_read(whole: dict[Path, bytes], reader: str) -> None:
    READERS[reader][0](restored(whole))


@pytest.mark.parametrize("reader", READERS)
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
@given(data=st.data())
def test_a_damaged_file_is_one_line_that_names_it(
        whole: dict[Path, bytes], reader: str, data: st.DataObject) -> None:
    read, names = READERS[reader]
    folder = restored(whole)
    path = folder / data.draw(st.sampled_from(names))
    path.write_bytes(data.draw(damaged(path.name, whole[path])))
    try:
        read(folder)
    except UserError as error:
        line = str(error).replace(str(folder), "")
        assert path.name in line
        assert "\n" not in line
        assert len(line) <= 300
