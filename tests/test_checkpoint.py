"""What a run resumes from: damaged, foreign, impossible, or left behind by a killed writer.

    python -m pytest tests/test_checkpoint.py
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from blip_art.config import Config, load_config
from blip_art.distributed import World
from blip_art.errors import UserError
from blip_art.files import RunDir
from blip_art.model.captioner import build_captioner
from blip_art.model.tokenizer import CaptionTokenizer
from blip_art.model.weights import read_state, save_weights
from blip_art.train.__main__ import main
from blip_art.train.checkpoint import Identity, Progress, load_checkpoint, save_checkpoint
from blip_art.train.optim import Stepper
from tests.mini import write_mini

CPU = torch.device("cpu")
ALONE = World(0, 1, CPU)
EPOCHS, STEPS = 2, 8
IDENTITY: Identity = {"seed": 42, "configuration": {"train.lr": 0.1}, "data": "d", "run": "r"}
DAMAGES = 25


class Side:
    """A model and its optimizer, as a training has them."""

    def __init__(self, config: Config) -> None:
        self.tokenizer = CaptionTokenizer(config.model.tokenizer)
        self.model = build_captioner(config.model, self.tokenizer)
        self.stepper = Stepper(self.model, config.train, CPU)

    def step(self) -> None:
        images = torch.rand(2, 3, 32, 32)
        ids = self.tokenizer.encode(["a picture of red, circle", "a picture of blue, square"], 12)
        self.stepper.backward(self.model(images, ids))
        self.stepper.step()

    def save(self, run: RunDir, step: int, identity: Identity = IDENTITY) -> None:
        save_checkpoint(run, identity, Progress(0, step), self.model, self.stepper, None)

    def load(self, run: RunDir, world: World = ALONE) -> Progress:
        return load_checkpoint(run, IDENTITY, EPOCHS, STEPS, self.model, self.stepper, None, world)

    def state(self) -> dict[str, Tensor]:
        """Copies of all tensors that a resumed run goes on with."""
        moments = self.stepper.optimizer.state_dict()["state"]
        return {**{name: tensor.clone() for name, tensor in self.model.state_dict().items()},
                **{f"{i} {name}": tensor.clone() for i, averages in moments.items()
                   for name, tensor in averages.items()}}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return load_config(write_mini(tmp_path_factory.mktemp("mini"), train=8, val=1))


@pytest.fixture(scope="module")
def saved(config: Config, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """A run after two checkpoints, and the states by step."""
    run, side = RunDir(tmp_path_factory.mktemp("run")), Side(config)
    states: dict[int, Any] = {0: run}
    for step in (1, 2):
        side.step()
        side.save(run, step)
        states[step] = side.state()
    return states


@pytest.fixture
def run(saved: dict[int, Any], tmp_path: Path) -> RunDir:
    shutil.copytree(saved[0].path, tmp_path / "run")
    return RunDir(tmp_path / "run")


@pytest.fixture
def fresh(config: Config) -> Side:
    return Side(config)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def damages(size: int) -> list[Callable[[bytearray], None]]:
    """Flipped bits anywhere and at both ends, bytes that are zeroed, files that are cut short."""
    rng = random.Random(0)

    def flip(at: int) -> Callable[[bytearray], None]:
        bit = 1 << rng.randrange(8)
        return lambda content: content.__setitem__(at, content[at] ^ bit)

    def cut(to: int) -> Callable[[bytearray], None]:
        return lambda content: content.__delitem__(slice(to, None))
    places = [rng.randrange(size) for _ in range(DAMAGES)]
    ends = [rng.randrange(200) for _ in range(10)] + [size - 1 - rng.randrange(200)
                                                      for _ in range(20)]
    return ([flip(at) for at in places + ends]
            + [cut(to) for to in (0, 3, size // 3, size - 80, size - 64, size - 1)]
            + [lambda content: content.__setitem__(slice(size // 2, size // 2 + 999), bytes(999))])


def test_a_damaged_checkpoint_gives_way_to_the_one_before(
        run: RunDir, saved: dict[int, Any], fresh: Side, capsys: pytest.CaptureFixture[str]
        ) -> None:
    whole, before = run.last_checkpoint.read_bytes(), run.previous_checkpoint.read_bytes()
    for number, damage in enumerate(damages(len(whole))):
        content = bytearray(whole)
        damage(content)
        run.last_checkpoint.write_bytes(content)
        run.previous_checkpoint.write_bytes(before)
        progress, said = fresh.load(run), capsys.readouterr().out
        assert equal(fresh.state(), saved[progress.step]), number
        if progress.step == 1:
            assert "going on from the checkpoint before it, previous.pt\n" in said, number
            assert said.count("\n") == 1, number
            assert run.last_checkpoint.read_bytes() == before
            assert not run.previous_checkpoint.exists()


def test_a_folder_in_the_newest_checkpoints_place_is_named(run: RunDir, fresh: Side) -> None:
    run.last_checkpoint.unlink()
    run.last_checkpoint.mkdir()
    with pytest.raises(UserError, match=r"cannot put previous\.pt in the place of .*last\.pt: Is a "
                                        r"directory; remove what is there"):
        fresh.load(run)


def test_without_any_that_is_whole_there_is_one_line(run: RunDir, fresh: Side) -> None:
    for path in run.saved_checkpoints():
        path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"^nothing to resume from: .*last\.pt.*previous\.pt.*"
                                        r"start again in another --run, or delete"):
        fresh.load(run)


def test_a_kill_between_the_two_renames_costs_nothing(
        run: RunDir, saved: dict[int, Any], fresh: Side) -> None:
    run.last_checkpoint.replace(run.previous_checkpoint)
    assert fresh.load(run).step == 2
    assert equal(fresh.state(), saved[2])


def test_all_ranks_go_back_when_one_reads_damage(
        run: RunDir, saved: dict[int, Any], fresh: Side) -> None:
    newest = run.last_checkpoint.read_bytes()[-64:].decode()  # the digest

    class TheOtherReadsDamage(World):
        def gather(self, value: Any) -> list[Any]:
            bad = getattr(value, "content", "") == newest
            return [value, value._replace(damage="damaged on rank 1") if bad else value]
    assert fresh.load(run, TheOtherReadsDamage(0, 1, CPU)).step == 1
    assert equal(fresh.state(), saved[1])


@pytest.mark.parametrize("error", [
    MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), OSError(5, "I/O")])
def test_a_whole_checkpoint_that_cannot_be_loaded_today_is_not_given_up(
        run: RunDir, fresh: Side, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    newest = run.last_checkpoint.read_bytes()

    def load(path: Path, **options: Any) -> Any:
        raise error
    monkeypatch.setattr("torch.load", load)
    with pytest.raises(UserError, match=r"cannot load .*last\.pt, which is whole \(.*--resume"):
        fresh.load(run)
    assert run.last_checkpoint.read_bytes() == newest


def test_a_training_goes_on_from_the_checkpoint_before(
        config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, other = RunDir(tmp_path / "run"), RunDir(tmp_path / "other")

    def train(run: RunDir) -> None:
        assert main([f"{config.data.annotations}/config.yaml", "--resume", "--run", str(run.path),
                     "data.num_workers=0", "train.keep=all", "generate.num_beams=1"]) == 0
    train(run)
    weights = run.weights(1).read_bytes()
    run.weights(1).unlink()
    content = bytearray(run.last_checkpoint.read_bytes())
    content[len(content) // 3] ^= 4
    run.last_checkpoint.write_bytes(content)
    capsys.readouterr()
    train(run)
    assert "last.pt is damaged (its content is not" in capsys.readouterr().out
    assert run.weights(1).read_bytes() == weights
    other.checkpoints.mkdir(parents=True)
    train(other)
    shutil.copy(run.last_checkpoint, other.last_checkpoint)
    with pytest.raises(UserError, match=r"belongs to another run \(another run\)"):
        train(other)


def test_a_checkpoint_that_a_rank_does_not_see_yet_is_not_given_up(
        run: RunDir, fresh: Side) -> None:
    both = run.saved_checkpoints()

    class TheFirstRankSees(World):
        def gather(self, value: Any) -> list[Any]:
            return [both, both] if value == both[1:] else [value, value]
    run.last_checkpoint.rename(run.path / "elsewhere")
    with pytest.raises(UserError, match=r"cannot read .*last\.pt: No such file.*--resume"):
        fresh.load(run, TheFirstRankSees(0, 1, CPU))
    assert run.previous_checkpoint.exists()


def test_runs_killed_at_random_points_end_equal_and_leave_nothing(repo: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bench.kill_soak", "--trials", os.environ.get("BLIP_ART_SOAK", "1")],
        cwd=repo, env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True, capture_output=True,
        check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("other", "named"), [
    ({"seed": 7}, "seed 7, here 42"), ({"configuration": {"train.lr": 1}}, "train.lr 1, here 0.1"),
    ({"data": "x"}, "another data"), ({"run": "x"}, "another run")])
def test_the_checkpoint_of_another_run_is_refused(
        run: RunDir, fresh: Side, other: dict[str, Any], named: str) -> None:
    fresh.save(run, 1, {**IDENTITY, **other})
    before = fresh.state()
    with pytest.raises(UserError, match=rf"last\.pt belongs to another run \({named}\)"):
        fresh.load(run)
    assert equal(fresh.state(), before)


def test_a_setting_that_an_older_version_did_not_have_is_no_other_run(
        run: RunDir, fresh: Side) -> None:
    fresh.save(run, 3, {**IDENTITY, "configuration": {"train.gone": 1}})
    assert fresh.load(run).step == 3


def test_a_checkpoint_without_identity_and_digest_goes_on_and_says_so(
        run: RunDir, saved: dict[int, Any], fresh: Side, capsys: pytest.CaptureFixture[str]
        ) -> None:
    rewrite(run, lambda content: content.pop("identity"))
    assert fresh.load(run).step == 2
    assert equal(fresh.state(), saved[2])
    assert "by a version without digests: only its checksums" in capsys.readouterr().out
    content = bytearray(run.last_checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    run.last_checkpoint.write_bytes(content)
    assert fresh.load(run).step == 1


def test_a_checkpoint_whose_digest_was_taken_off_is_damaged(run: RunDir, fresh: Side) -> None:
    rewrite(run, lambda content: None)
    assert fresh.load(run).step == 1


def rewrite(run: RunDir, change: Callable[[dict[str, Any]], Any]) -> None:
    content = torch.load(run.last_checkpoint, weights_only=True)
    change(content)
    torch.save(content, run.last_checkpoint)


@pytest.mark.parametrize("progress", [
    {"step": 10**9}, {"step": -1}, {"epoch": EPOCHS}, {"epoch": 1.5}, {"step": True},
    {"loss_sum": float("nan")}, {"skipped": 9}, {"more": 1}])
def test_a_place_where_the_run_never_is_is_refused(
        run: RunDir, fresh: Side, progress: dict[str, Any]) -> None:
    def change(content: dict[str, Any]) -> None:
        content.pop("identity")
        content["progress"].update(progress)
    rewrite(run, change)
    with pytest.raises(UserError, match="which a run of 2 epochs of 8 steps is never"):
        fresh.load(run)


@pytest.mark.parametrize("wrong", ["shape", "steps", "keys", "index", "none", "model type"])
def test_a_state_that_does_not_fit_is_refused(run: RunDir, fresh: Side, wrong: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content.pop("identity")
        moments = content["optimizer"]["state"]
        if wrong == "shape":
            moments[3]["exp_avg"] = torch.zeros(1)
        elif wrong == "steps":
            moments[3]["step"] = torch.zeros(7)
        elif wrong == "keys":
            moments[3]["momentum_buffer"] = moments[3].pop("exp_avg_sq")
        elif wrong == "index":
            moments[10**6] = moments[3]
        elif wrong == "none":
            moments[3]["exp_avg"] = None
        else:
            name = "visual_encoder.pos_embed"
            content["model"][name] = content["model"][name].long()
    rewrite(run, change)
    before = fresh.state()
    with pytest.raises(UserError, match=r"last\.pt does not fit this run's model"):
        fresh.load(run)
    assert equal(fresh.state(), before)


def test_every_damage_to_an_epochs_weights_is_seen(fresh: Side, tmp_path: Path) -> None:
    path = tmp_path / "epoch_00.safetensors"
    save_weights(fresh.model, path, IDENTITY)
    whole = path.read_bytes()
    state = {name: tensor.clone() for name, tensor in read_state(str(path)).items()}
    refused = 0
    for damage in damages(len(whole)):
        content = bytearray(whole)
        damage(content)
        path.write_bytes(content)
        try:
            assert equal(read_state(str(path)), state)
        except UserError as error:
            refused += "\n" not in str(error)
    assert refused == len(damages(len(whole)))


def test_equal_weights_of_two_runs_are_equal_files(fresh: Side, tmp_path: Path) -> None:
    for name, run in (("a", "r"), ("b", "another")):
        save_weights(fresh.model, tmp_path / name, {**IDENTITY, "run": run})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_file_system_that_reads_in_small_pieces_changes_no_digest(
        fresh: Side, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    read = os.pread
    monkeypatch.setattr(os, "pread", lambda file, size, at: read(file, min(size, 100_001), at))
    assert fresh.load(run).step == 2
