"""An error in one rank ends all processes, and its reason is what state.json and the log end with.

    python -m pytest tests/test_errors_end.py      bench/errors_end.py measures more cases
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from bench.errors_end import Case, Outcome, run_case, write_inputs
from blip_art.cluster.jobs import Job
from blip_art.errors import EXIT_BROKEN_PIPE, EXIT_FAILED, EXIT_USER_ERROR
from blip_art.failure import Failure, forget_failure, write_failure
from blip_art.files import RunDir, read_json, write_json, write_text
from tests.conftest import REPO
from tests.mini import write_mini

END_S = 30.0
MEMORY = (r"the GPU is out of memory \(CUDA out of memory. Tried to allocate 2.00 GiB\)")
IN_TRAINING = (f"{MEMORY}; set train.grad_checkpointing=true, or lower train.batch_size and raise "
               "train.accumulate by the same factor")
IN_CAPTIONS = f"{MEMORY}; lower generate.batch_size or generate.num_beams"
LOADER = r"a loader process was killed \(.*\); often there is not enough memory: lower data.num"
PICTURE = r"cannot read picture .*(train_96|val_64)\.png \(missing\)"
KILLED = r"was ended by SIGKILL \(often: not enough memory\)"
LOST = r"ended without a message \(killed\? often there is not enough memory\)"

CASES = {
    Case("train", 1, "loader"): (2, LOADER),
    Case("train", 1, "killed"): (137, f"rank 0 {KILLED}"),
    Case("train", 2, "memory", 1): (2, f"rank 1: {IN_TRAINING}"),
    Case("train", 2, "picture", 1): (2, PICTURE),
    Case("train", 2, "killed", 0, "alone"): (EXIT_FAILED, f"rank 0 {LOST}"),
    Case("train", 4, "killed", 2): (137, f"rank 2 {KILLED}"),
    Case("predict", 1, "memory"): (2, IN_CAPTIONS),
    Case("predict", 2, "loader", 1): (2, f"rank 1: {LOADER}"),
    Case("predict", 4, "stuck", 3): (2, f"rank 3: {IN_CAPTIONS}"),
}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Case, Future[Outcome]]]:
    """All cases, begun side by side: much of their time is waiting."""
    folder = tmp_path_factory.mktemp("errors")
    inputs = write_inputs(folder / "inputs")
    with ThreadPoolExecutor(3) as pool:
        yield {case: pool.submit(run_case, case, inputs, folder / str(case), END_S)
               for case in CASES}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_an_error_ends_all_processes(case: Case, outcomes: dict[Case, Future[Outcome]]) -> None:
    code, why = CASES[case]
    ended = outcomes[case].result()
    assert not ended.left, ended.log
    assert ended.codes[-1] == code, ended.log
    assert all(ended.codes)
    assert ended.state["state"] == "failed"
    assert re.match(why, ended.state["why"]) or re.match(f"rank 1: {why}", ended.state["why"])
    assert ended.log.rstrip().endswith(f"error: {ended.state['why']}")


def test_captions_that_fail_leave_a_finished_training_finished(tmp_path: Path) -> None:
    run, failure = RunDir(tmp_path), Failure(1, EXIT_FAILED, "rank 1: no memory")
    write_text(run.weights(0), "")
    write_json(run.state, {"state": "finished", "why": "", "epochs": 1})
    write_failure(run, "predict", failure)
    assert read_json(run.state) == {"state": "finished", "epochs": 1,
                                    "why": "captions have failed: rank 1: no memory"}
    forget_failure(run)
    assert read_json(run.state) == {"state": "finished", "why": "", "epochs": 1}
    write_failure(run, "train", failure)
    assert read_json(run.state) == {"state": "failed", "why": "rank 1: no memory"}


def test_a_state_that_cannot_be_written_hides_no_error(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    run.state.mkdir()
    write_failure(run, "train", Failure(0, EXIT_FAILED, "no memory"))
    assert list(run.path.iterdir()) == [run.state]


def test_a_training_whose_log_nobody_reads_has_failed(tmp_path: Path) -> None:
    config, run = write_mini(tmp_path / "mini", train=4, val=2), RunDir(tmp_path / "run")
    training = subprocess.Popen(
        [sys.executable, "-m", "blip_art.train", str(config), "--run", str(run.path),
         "data.num_workers=0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert training.stdout
    training.stdout.close()
    _, errors = training.communicate(timeout=240)
    assert training.returncode == EXIT_USER_ERROR
    said = read_json(run.state)
    assert said["state"] == "failed"
    assert said["why"].startswith("nobody reads the output any more (broken pipe)")
    assert errors.decode().splitlines()[-1] == f"error: {said['why']}"


COMMAND = """
import sys
from blip_art.errors import UserError, exit_cleanly

def main():
    sys.stdin.read()
    {what}
exit_cleanly(main)
"""


@pytest.mark.parametrize(("what", "reads", "code", "last"), [
    ("print('x' * 10**6)", False, EXIT_BROKEN_PIPE, ""),
    ("print('all was done when it turned out that nobody reads')", False, 0, ""),
    ("raise BrokenPipeError('another')", True, EXIT_FAILED, "error: BrokenPipeError: another"),
    ("raise UserError('no such file')", True, EXIT_USER_ERROR, "error: no such file"),
    ("raise ValueError('two\\nlines')", True, EXIT_FAILED, "error: ValueError: two lines")])
def test_the_last_line_and_the_exit_code_name_the_error(
        what: str, reads: bool, code: int, last: str) -> None:
    command = subprocess.Popen([sys.executable, "-c", COMMAND.format(what=what)], text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env={"PYTHONPATH": str(REPO)})
    assert command.stdout
    if not reads:
        command.stdout.close()
    _, errors = command.communicate(timeout=60)
    assert (command.returncode, "".join(errors.splitlines()[-1:])) == (code, last)


def test_a_task_of_a_step_that_is_killed_is_recorded(tmp_path: Path) -> None:
    rank = ("import os; from blip_art.failure import note_run; from blip_art.files import RunDir; "
            "note_run(RunDir('run'), 'train'); os.kill(os.getpid(), 9)")
    job = Job("train", (sys.executable, "-c", rank), cwd=str(tmp_path), log="log", layout="gpu")
    step = (f"from blip_art.cluster.allocation import run_in_allocation; "
            f"from blip_art.cluster.jobs import Job; run_in_allocation({job!r}, 'notes')")
    done = subprocess.run(
        [sys.executable, "-c", step], cwd=tmp_path, check=False, timeout=60,
        env={"PYTHONPATH": str(REPO), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "a",
             "SLURM_NTASKS": "2", "SLURM_PROCID": "1", "SLURM_LOCALID": "1"})
    why = "rank 1 was ended by SIGKILL (often: not enough memory)"
    assert done.returncode == 137
    assert read_json(tmp_path / "run" / "state.json") == {
        "state": "failed", "why": why, "job": "7", "start": 0}
    assert (tmp_path / "log").read_text().splitlines()[-1] == f"error: {why}"
