"""Training as a user runs it: three real ranks, stopped, resumed, refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from blip_art.config import load_config
from blip_art.distributed import Interrupted, World
from blip_art.errors import UserError
from blip_art.files import RunDir, read_json, read_jsonl, write_json, write_text
from blip_art.model.captioner import BlipCaptioner, build_captioner
from blip_art.model.tokenizer import CaptionTokenizer
from blip_art.rank_plan import RankPlan, plan_ranks
from blip_art.readable import freeze_references, readable_pairs
from blip_art.score.lock import taken
from blip_art.train import heartbeat
from blip_art.train.__main__ import Training, main
from blip_art.train.batches import EpochBatches, steps_per_epoch
from blip_art.train.faster import faster_steps
from blip_art.train.setup import open_run, write_state
from tests.mini import write_mini

ALONE = World(0, 1, torch.device("cpu"))
STEPS = 30
RANKS = 3  # with two, the order of sums cannot matter


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_mini(tmp_path_factory.mktemp("mini"), train=2 * RANKS * STEPS, val=7)


def start(config: Path, run: Path, *arguments: str, ranks: int = RANKS) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "blip_art.torchrun", "--standalone", f"--nproc_per_node={ranks}",
         "-m", "blip_art.train", str(config), "--run", str(run), "train.batch_size=2", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def finish(process: subprocess.Popen) -> tuple[int, str]:
    output, errors = process.communicate(timeout=240)
    return process.returncode, output + errors


@pytest.fixture(scope="module")
def undisturbed(config, tmp_path_factory) -> RunDir:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    code, output = finish(start(config, run))
    assert code == 0, output
    return RunDir(run)


def test_every_picture_is_captioned_once_in_order(undisturbed):
    for result in undisturbed.predicted():
        ids = [row["image_id"] for row in read_json(result.path)]
        assert ids == [str(number) for number in range(1, 8)]
    assert [result.epoch for result in undisturbed.predicted()] == [0, 1]


def test_the_run_folder_tells_the_story(undisturbed):
    assert read_json(undisturbed.state)["state"] == "finished"
    first, second = read_jsonl(undisturbed.train_log)
    assert second["loss"] < first["loss"]
    assert (first["steps"], first["skipped_steps"]) == (STEPS, 0)
    assert 0 < first["data_wait_share"] < 1
    assert first["host_memory_gb"] > RANKS * 0.1
    assert not undisturbed.progress.exists()  # it is of what runs
    assert undisturbed.output.read_text().count("epoch") == 2
    assert len(read_json(undisturbed.references("val"))["annotations"]) == 7
    assert load_config(undisturbed.config).train.batch_size == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_a_stopped_run_goes_on_to_the_same_weights(undisturbed, config, tmp_path, number):
    run = RunDir(tmp_path / "stopped")
    process = start(config, run.path, "train.save_every_min=0.0001")
    while not run.last_checkpoint.exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.02)
    process.send_signal(number)
    code, output = finish(process)
    assert code == 130, output
    assert "Traceback" not in output, output
    saved = torch.load(run.last_checkpoint, weights_only=True)["progress"]
    assert 0 < saved["step"] < STEPS  # in the middle of an epoch
    assert read_json(run.state)["state"] == "stopped"
    beat = read_json(run.progress)
    assert (beat["doing"], beat["epoch"], beat["epochs"]) == ("training", 0, 2)
    assert 1 <= beat["step"] <= beat["steps"] == STEPS

    code, output = finish(start(config, run.path, "--resume"))
    assert code == 0, output
    for epoch in (0, 1):
        ours, theirs = load_file(run.weights(epoch)), load_file(undisturbed.weights(epoch))
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
        assert (run.predictions("val", epoch).read_bytes()
                == undisturbed.predictions("val", epoch).read_bytes())
    assert ([row["loss"] for row in read_jsonl(run.train_log)]
            == pytest.approx([row["loss"] for row in read_jsonl(undisturbed.train_log)], rel=1e-12))


def test_all_options_of_training_work_together(config, tmp_path):
    """Two ranks, accumulated gradients, EMA, bf16, layer decay, clipping, checkpointing."""
    run = RunDir(tmp_path / "options")
    code, output = finish(start(
        config, run.path, "train.accumulate=3", "train.ema_decay=0.9", "train.amp=bf16",
        "train.layer_decay=0.8", "train.clip_norm=1", "train.grad_checkpointing=true",
        "train.schedule=step", "train.warmup_steps=5", "train.keep=all"))
    assert code == 0, output
    first, second = read_jsonl(run.train_log)
    assert second["loss"] < first["loss"]
    assert run.saved_epochs() == [0, 1]
    trained = torch.load(run.last_checkpoint, weights_only=True)
    averaged = load_file(run.weights(1))
    name = "visual_encoder.patch_embed.proj.weight"
    assert torch.equal(averaged[name], trained["ema"][f"module.{name}"])
    assert not torch.equal(averaged[name], trained["model"][name])


def test_a_run_killed_among_its_captions_writes_them_again(undisturbed, config):
    before = undisturbed.last_checkpoint.stat().st_mtime_ns
    captions = undisturbed.predictions("val", 1).read_bytes()
    undisturbed.predictions("val", 1).unlink()
    code, output = finish(start(config, undisturbed.path, "--resume"))
    assert code == 0, output
    assert undisturbed.last_checkpoint.stat().st_mtime_ns == before  # no step was done again
    assert undisturbed.predictions("val", 1).read_bytes() == captions
    assert len(read_jsonl(undisturbed.train_log)) == 2


def test_training_that_explodes_ends_with_advice(config, tmp_path, capsys):
    run = tmp_path / "run"
    with pytest.raises(UserError, match=r"not finite 50 steps in a row.*lower train\.lr"):
        main([str(config), "--run", str(run), "train.lr=1000", "train.batch_size=1",
              "train.epochs=1", "data.num_workers=0"])
    assert read_json(RunDir(run).state)["state"] == "failed"


def test_one_step_that_is_not_finite_is_left_out_of_the_loss(config, tmp_path, monkeypatch,
                                                             capsys):
    monkeypatch.setattr(heartbeat, "LINE_S", 0.0)
    whole = BlipCaptioner.forward
    calls = iter(range(1000))

    def sometimes_infinite(self, *batch):
        return whole(self, *batch) * (float("inf") if next(calls) == 3 else 1.0)
    monkeypatch.setattr(BlipCaptioner, "forward", sometimes_infinite)
    run = RunDir(tmp_path / "run")
    assert main([str(config), "--run", str(run.path), "train.epochs=1", "train.batch_size=8",
                 "data.num_workers=0"]) == 0
    row, = read_jsonl(run.train_log)
    assert row["skipped_steps"] == 1
    assert 2 < row["loss"] < 6
    # Nobody looks at a bar: the log says how far it is.
    lines = [line for line in capsys.readouterr().out.splitlines() if "step" in line]
    assert [line.split()[3] for line in lines] == ["10/22", "20/22", "22/22"]
    assert re.fullmatch(r"epoch   0  step 10/22  loss \d\.\d{4}  \d+\.\d pictures/s  \d+ % waiting "
                        r"for data  \d+ s to go", lines[0])


def test_what_is_compiled_is_what_a_step_calls(config):
    loaded = load_config(str(config))
    tokenizer = CaptionTokenizer(loaded.model.tokenizer)
    model = build_captioner(loaded.model, tokenizer)
    called = []
    modules = faster_steps(model, "eager", None)
    for module in modules:
        module.register_forward_hook(lambda module, *_: called.append(module))
    model(torch.zeros(1, 3, 32, 32), tokenizer.encode(["a picture of red, circle"], 12))
    assert called == [*modules]


def test_compiled_steps_learn_as_others_do(config, tmp_path):
    losses = {}
    for backend in ("", "aot_eager"):
        run = RunDir(tmp_path / f"run{backend}")
        assert main([str(config), "--run", str(run.path), "train.epochs=1", "train.batch_size=8",
                     "model.dropout=0", "data.num_workers=0", f"train.compile={backend}"]) == 0
        losses[backend] = read_jsonl(run.train_log)[0]["loss"]
    assert losses["aot_eager"] == pytest.approx(losses[""], rel=1e-4)
    with pytest.raises(UserError, match="no backend 'indutcor'; this torch has.*inductor"):
        main([str(config), "--run", str(tmp_path / "typo"), "train.compile=indutcor"])


def test_two_ranks_compile_too(config, tmp_path):
    run = RunDir(tmp_path / "run")
    code, output = finish(start(config, run.path, "train.epochs=1", "train.compile=aot_eager"))
    assert code == 0, output
    assert read_jsonl(run.train_log)[0]["loss"] < 6


def test_inductor_without_a_compiler_is_refused(config, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(UserError, match="needs a C compiler.*cudagraphs needs none"):
        main([str(config), "--run", str(tmp_path / "run"), "train.compile=inductor"])


def test_cuda_graphs_do_not_accumulate(config, tmp_path):
    with pytest.raises(UserError, match="accumulate must be 1 where train.compile is 'cudagraphs'"):
        main([str(config), "--run", str(tmp_path / "run"), "train.compile=cudagraphs",
              "train.accumulate=2"])


def test_captions_of_something_else_are_not_taken_for_this_trainings(config, tmp_path):
    run = RunDir(tmp_path / "run")
    write_json(run.predictions("val", 0), [])
    with pytest.raises(UserError, match="has captions or weights but no checkpoint"):
        open_run(run, load_config(config), resume=True, world=ALONE)


def test_a_finished_training_without_checkpoints_does_not_begin_again(config, tmp_path):
    run = RunDir(tmp_path / "run")
    write_text(run.weights(0), "")
    write_json(run.state, {"state": "finished"})
    with pytest.raises(UserError, match="is finished and its checkpoints are gone"):
        open_run(run, load_config(config), resume=True, world=ALONE)


def stop_at_first_checkpoint(config, run, monkeypatch, *settings):
    """One process, stopped in the middle of an epoch."""
    save = Training.save

    def save_and_stop(training, progress):
        save(training, progress)
        raise Interrupted
    with monkeypatch.context() as patch:
        patch.setattr(Training, "save", save_and_stop)
        main([str(config), "--run", str(run.path), *settings, "train.save_every_min=0.0001"])
    return torch.load(run.last_checkpoint, weights_only=True)["progress"]["step"]


def test_more_ranks_go_on_with_what_one_began(config, tmp_path, monkeypatch):
    """Four batches a step by one rank, then by two: of an epoch's last step one has none."""
    settings = ["train.epochs=1", "train.accumulate=4", "train.schedule=step",
                "train.warmup_steps=50", "train.batch_size=20"]  # nine batches an epoch
    whole, run = RunDir(tmp_path / "whole"), RunDir(tmp_path / "run")
    assert main([str(config), "--run", str(whole.path), *settings]) == 0
    assert stop_at_first_checkpoint(config, run, monkeypatch, *settings) == 4
    code, output = finish(start(config, run.path, *settings, "--resume", ranks=2))
    assert code == 0, output
    assert "goes on with 2 processes, 1 began it: train.accumulate is 2 instead of 4" in output
    is_the_same_run(run, whole)
    assert (read_json(run.manifest)["ranks"], read_json(run.manifest)["ranks_now"]) == (1, 2)
    assert [read_jsonl(one.train_log)[0]["ranks"] for one in (whole, run)] == [1, 2]


def test_one_rank_goes_on_with_what_three_began(undisturbed, config, tmp_path):
    run = RunDir(tmp_path / "stopped")
    process = start(config, run.path, "train.save_every_min=0.0001")
    while not run.last_checkpoint.exists():
        assert process.poll() is None, finish(process)
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    finish(process)
    code, output = finish(start(config, run.path, "--resume", ranks=1))
    assert code == 0, output
    is_the_same_run(run, undisturbed)


def is_the_same_run(run, other):
    """But for the order of sums."""
    rows = [[{key: row[key] for key in ("epoch", "loss", "lr", "steps", "skipped_steps")}
             for row in read_jsonl(one.train_log)] for one in (run, other)]
    assert rows[0] == [{key: pytest.approx(value, rel=1e-5) for key, value in row.items()}
                       for row in rows[1]]
    last = run.saved_epochs()[-1]
    ours, theirs = load_file(run.weights(last)), load_file(other.weights(last))
    for name, weights in theirs.items():
        assert torch.allclose(ours[name], weights, atol=2e-4), (name, ours[name] - weights)


@pytest.mark.parametrize(("begun", "settings", "message"), [
    (3, [], "begun with 3 processes .*takes 3 batches of 4 a step.*go on with 1 or 3 in all, or"),
    (2, ["train.accumulate=3"], "takes 6 batches .*go on with 1, 2, 3 or 6 in all"),
    (2, ["train.compile=cudagraphs"], "cudagraphs cannot accumulate .*go on with 2 in all"),
    (-1, [], None), (4, [], None)])
def test_ranks_that_cannot_share_a_batch_are_refused(config, tmp_path, begun, settings, message):
    run, loaded = RunDir(tmp_path / "run"), load_config(config, settings)
    write_json(run.manifest, {"ranks": begun})
    assert plan_ranks(run, loaded, 4) == RankPlan(4, 4, loaded.train.accumulate)  # no checkpoint
    write_json(run.last_checkpoint, [])
    if message is None:
        assert plan_ranks(run, loaded, 4).accumulate == 1
    else:
        with pytest.raises(UserError, match=message):
            plan_ranks(run, loaded, 4)


def test_changed_data_are_named(undisturbed, config, tmp_path):
    world = World(0, 1, torch.device("cpu"))
    run = RunDir(tmp_path / "copy")
    shutil.copytree(undisturbed.path, run.path)
    write_json(run.manifest, {**read_json(run.manifest), "ranks": 1})
    lists = config.parent / "train.json"
    before = lists.read_text()
    lists.write_text(before.replace("red", "blue"))
    try:
        with pytest.raises(UserError, match=r"train\.json has changed since"):
            open_run(run, load_config(config, ["train.batch_size=2"]), resume=True, world=world)
    finally:
        lists.write_text(before)


def test_a_run_with_a_checkpoint_is_not_overwritten(undisturbed, config):
    code, output = finish(start(config, undisturbed.path))
    assert code == 2
    assert output.count("error:") == 1
    assert "already has a checkpoint; add --resume" in output
    assert "Traceback" not in output, output


def test_another_configuration_is_named(undisturbed, config):
    changed = load_config(config, ["train.batch_size=2", "train.lr=5e-4", "data.num_workers=0"])
    with pytest.raises(UserError, match=r"another configuration \(train\.lr: 0\.001 → 0\.0005\)"):
        open_run(undisturbed, changed, resume=True, world=ALONE)


def test_a_run_folder_that_cannot_be_written_is_named(config, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot write .*file/run/output.txt"):
        open_run(RunDir(tmp_path / "file" / "run"), load_config(config), resume=False, world=ALONE)


def test_a_text_log_does_not_go_over_the_captions(config, tmp_path):
    captions = config.parent / "train.json"
    before = captions.read_bytes()
    with pytest.raises(UserError, match=r"output_file .*train\.json is the input"):
        open_run(RunDir(tmp_path / "run"), load_config(config, [f"output_file={captions}"]),
                 resume=False, world=ALONE)
    assert captions.read_bytes() == before


@pytest.fixture
def with_bad_pictures(tmp_path) -> Path:
    config = write_mini(tmp_path, train=6, val=3)
    (tmp_path / "pictures" / "train_2.png").write_text("this is text")
    (tmp_path / "pictures" / "train_5.png").unlink()
    return config


def test_bad_pictures_stop_a_run_before_it_starts(with_bad_pictures, tmp_path):
    with pytest.raises(UserError, match=r"2 of 6 pictures.*train_2\.png: .*train_5\.png: missing"):
        readable_pairs(load_config(with_bad_pictures), RunDir(tmp_path / "r"), "train", ALONE)


def test_bad_pictures_can_be_skipped(with_bad_pictures, tmp_path):
    config = load_config(with_bad_pictures, ["data.bad_pictures=skip"])
    pairs = readable_pairs(config, RunDir(tmp_path / "r"), "train", ALONE)
    assert [pair.image_id for pair in pairs] == ["1", "3", "4", "6"]
    verdict = json.loads((tmp_path / "r" / "bad_pictures" / "train.json").read_text())
    assert set(verdict["bad"]) == {"train_2.png", "train_5.png"}


def test_the_verdict_on_pictures_belongs_to_their_folder(with_bad_pictures, tmp_path):
    run = RunDir(tmp_path / "r")
    wrong = load_config(with_bad_pictures, ["data.bad_pictures=skip", "data.images=/nowhere"])
    with pytest.raises(UserError, match=r"is data\.images=/nowhere the right folder\?"):
        readable_pairs(wrong, run, "train", ALONE)
    right = load_config(with_bad_pictures, ["data.bad_pictures=skip"])
    assert len(readable_pairs(right, run, "train", ALONE)) == 4
    with pytest.raises(UserError, match="2 of 6 pictures"):
        readable_pairs(load_config(with_bad_pictures), run, "train", ALONE)


def test_the_order_of_the_data_stays_where_only_the_checkpoint_before_is_left(
        with_bad_pictures, tmp_path):
    config, run = load_config(with_bad_pictures, ["data.bad_pictures=skip"]), RunDir(tmp_path / "r")
    before = readable_pairs(config, run, "train", ALONE)
    write_json(run.previous_checkpoint, [])  # killed between two renames
    shutil.copy(tmp_path / "pictures" / "train_1.png", tmp_path / "pictures" / "train_5.png")
    assert readable_pairs(config, run, "train", ALONE) == before


@pytest.mark.parametrize("wrong", [[], {}, {"bad": []}, {"bad": {}}, {"question": {}, "bad": 3}])
def test_a_damaged_list_of_bad_pictures_is_named(with_bad_pictures, tmp_path, wrong):
    config, run = load_config(with_bad_pictures, ["data.bad_pictures=skip"]), RunDir(tmp_path / "r")
    write_json(run.last_checkpoint, [])
    write_json(run.bad_pictures("train"), wrong)
    with pytest.raises(UserError, match=r"bad_pictures/train\.json .*put (a|the) whole file there"):
        readable_pairs(config, run, "train", ALONE)


ROWS = [{"image_id": number, "caption": "a sun"} for number in (1, 2, 3)]


@pytest.mark.parametrize("truth", [
    [], {}, ROWS, {"annotations": [3]}, {"annotations": [{}]}, {"annotations": 3},
    {"annotations": ROWS, "images": [{}]}, {"annotations": [{"image_id": 1}]}])
def test_ground_truth_of_another_shape_is_named(tmp_path, truth):
    config = load_config(write_mini(tmp_path, train=1, val=3), ["data.val_gt=truth.json"])
    write_json(tmp_path / "truth.json", truth)
    run = RunDir(tmp_path / "r")
    readable_pairs(config, run, "val", ALONE)
    with pytest.raises(UserError, match=r"truth\.json"):
        freeze_references(config, run, "val", ALONE)


def test_half_an_emoji_in_the_ground_truth_stops_no_run(tmp_path):
    config = load_config(write_mini(tmp_path, train=1, val=3), ["data.val_gt=truth.json"])
    rows = [{**row, "caption": "a sun \ud83d"} for row in ROWS]
    (tmp_path / "truth.json").write_text(json.dumps({"annotations": rows}))
    run = RunDir(tmp_path / "r")
    readable_pairs(config, run, "val", ALONE)
    freeze_references(config, run, "val", ALONE)
    frozen = read_json(run.references("val"))
    assert [row["caption"] for row in frozen["annotations"]] == 3 * ["a sun \ufffd"]


def test_a_picture_that_is_lost_later_moves_no_other_pair(config, tmp_path, capsys):
    shutil.copytree(config.parent, tmp_path / "data")
    loaded = load_config(config, ["data.bad_pictures=skip", f"data.images={tmp_path}/data/pictures",
                                  f"data.annotations={tmp_path}/data"])
    run = RunDir(tmp_path / "r")
    before = readable_pairs(loaded, run, "train", ALONE)
    readable_pairs(loaded, run, "val", ALONE)
    for made in (run.last_checkpoint, run.predictions("val", 0)):
        write_json(made, [])
    for name in ("train_3.png", "val_2.png"):
        (tmp_path / "data" / "pictures" / name).unlink()
    assert readable_pairs(loaded, run, "train", ALONE) == before
    assert "train_3.png: missing): the next pair takes" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"1 pictures of .*val\.json .*val_2\.png.*put them back"):
        readable_pairs(loaded, run, "val", ALONE)
    with pytest.raises(UserError, match=r"1 of 180 pictures .*train_3\.png: missing"):
        readable_pairs(replace(loaded, data=replace(loaded.data, bad_pictures="fail")), run,
                       "train", ALONE)


def test_ground_truth_without_a_picture_of_the_list_is_named(config, tmp_path):
    other = [{"image_id": "another", "caption": "a sun"}]
    write_json(config.parent / "gt.json", {"images": [], "annotations": other})
    loaded = load_config(config, ["data.val_gt=gt.json"])
    readable_pairs(loaded, RunDir(tmp_path), "val", ALONE)
    with pytest.raises(UserError, match=r"gt\.json has no reference for 7 pictures"):
        freeze_references(loaded, RunDir(tmp_path), "val", ALONE)


def test_what_killed_writers_left_is_removed_and_nothing_else(config: Path, tmp_path: Path) -> None:
    run, host = RunDir(tmp_path / "run"), os.uname().nodename
    with subprocess.Popen(["true"]) as dead:
        pass
    left = [run.progress,
            run.checkpoints / f".last.pt.elsewhere.{os.getpid()}.tmp",  # only we write there
            run.checkpoints / f".epoch_00.safetensors.{host}.{os.getpid()}.tmp",
            run.path / "predictions" / f".val_00.json.{host}.{dead.pid}.tmp",
            run.path / f".state.json.elsewhere.{dead.pid}.tmp"]
    alive = [run.path / "predictions" / f".val_00.json.{host}.{os.getppid()}.tmp",
             run.path / "scores" / f".val_00.json.elsewhere.{dead.pid}.tmp",
             run.path / "notes.tmp", run.checkpoints / ".mine.tmp"]
    for path in left + alive:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    os.utime(left[-1], (0, 0))
    open_run(run, load_config(config), resume=True, world=ALONE)
    assert [path for path in left + alive if path.exists()] == alive


def batches_of(pairs, rank, ranks, epoch=2, start_step=0):
    batches = EpochBatches(pairs, 4, rank, ranks, seed=1)
    batches.begin(epoch, start_step)
    assert len(batches) == len(list(batches))
    return list(batches)


def test_an_epoch_shares_the_pairs_among_the_ranks():
    batches = [batches_of(103, rank, 3) for rank in range(3)]
    seen = [index for rank in batches for batch in rank for _, index in batch]
    assert steps_per_epoch(103, 4, 3) == 8
    assert all(len(rank) == 8 for rank in batches)
    assert len(set(seen)) == len(seen) == 8 * 4 * 3
    assert batches_of(103, 1, 3, start_step=5) == batches[1][5:]
    assert batches_of(103, 1, 3, epoch=3) != batches[1]


@pytest.mark.parametrize(("begun", "accumulate", "ranks"), [(4, 1, 2), (1, 4, 2), (1, 4, 4)])
def test_other_ranks_see_the_same_pictures_at_each_optimizer_step(begun, accumulate, ranks):
    def groups(ranks, accumulate):
        found: dict[int, set[tuple]] = {}
        for rank in range(ranks):
            batches = EpochBatches(103, 4, rank, ranks, 1, begun)
            for step, batch in enumerate(batches):
                if batches.has_part(step):
                    found.setdefault(step // accumulate, set()).add(tuple(batch))
        return found
    assert groups(ranks, begun * accumulate // ranks) == groups(begun, accumulate)


def test_a_set_smaller_than_one_batch_still_makes_a_step():
    assert [len(batches_of(3, rank, 2)[0]) for rank in range(2)] == [4, 4]


def test_a_full_disk_does_not_hide_why_training_failed(
        config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(path: Path, *_: object) -> None:
        raise UserError(f"cannot write {path}: No space left on device")

    def first_error(*_: object) -> None:
        for module in ("train.setup", "failure"):  # the run was opened while there was room
            monkeypatch.setattr(f"blip_art.{module}.write_json", no_space)
        raise RuntimeError("the first error")
    with monkeypatch.context() as patch:
        patch.setattr("blip_art.train.setup.write_json", no_space)
        with pytest.raises(UserError, match="No space left"):
            write_state(RunDir(tmp_path), ALONE, "running")
    monkeypatch.setattr("blip_art.train.__main__.readable_pairs", first_error)
    with pytest.raises(RuntimeError, match="the first error"):
        main([str(config), "--run", str(tmp_path / "run")])


def test_a_second_training_of_a_folder_is_refused(config: Path, tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with taken(run.training_lock), pytest.raises(UserError, match="is training in"):
        main([str(config), "--run", str(run.path)])
    assert not run.config.exists()
