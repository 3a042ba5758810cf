"""Which runs 'collect' and 'logs' mean by a folder, and how the logs of many are shown.

    python -m pytest tests/test_run_choice.py
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from blip_art.cluster.record import Submitted, record_jobs
from blip_art.cluster.run_choice import runs_to_collect, runs_with_logs
from blip_art.cluster.slurm import Completed, Slurm
from blip_art.cluster.sweep_logs import LineWriter, choose_run, follow_all
from blip_art.errors import UserError
from blip_art.files import RunDir, write_json, write_text

NOBODY = Slurm(lambda argv: Completed(0))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(path: str, state: str = "finished") -> RunDir:
    run = RunDir(path)
    write_json(run.state, {"state": state})
    return run


def test_collect_takes_what_lies_in_runs(here: Path) -> None:
    art, first, second = (make_run(f"runs/{name}") for name in ("art", "six/s=1", "six/s=2"))
    write_json("runs/six/sweep.json", {})
    write_json("runs/demo_archive/data.json", [])
    write_json("runs/report/report.json", {})
    record_jobs(RunDir("runs/report"), [Submitted("collect", "3")])
    record_jobs(RunDir("runs/queued"), [Submitted("train", "4")])
    write_text("runs/notes.txt", "")
    runs, skipped = runs_to_collect(sorted(map(str, Path("runs").iterdir())))
    assert [run.path for run in runs] == [art.path, first.path, second.path]
    assert skipped == ["runs/demo_archive", "runs/notes.txt", "runs/queued", "runs/report"]
    assert len(runs_to_collect(["runs/six", "runs/six/s=1/"])[0]) == 2
    for path, message in (("runs/demo_archive", "no run in runs/demo"), ("runs/x", "no run fold")):
        with pytest.raises(UserError, match=message):
            runs_to_collect([path])


def launch(repo: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, repo / "launch.py", *words], text=True,
                          capture_output=True, check=False)


def test_a_sweeps_report_lies_in_its_folder(here: Path, repo: Path) -> None:
    for name in ("s=1", "s=2"):
        make_run(f"runs/six/{name}")
    done = launch(repo, "collect", "runs/six", "--dry-run")
    assert "report runs/six/s=1 runs/six/s=2 -o runs/six/report" in done.stdout


def submitted(name: str, job_id: str, log: str, state: str = "running") -> RunDir:
    run = make_run(f"runs/six/{name}", state)
    path = run.slurm.absolute() / f"train_{job_id}_0.log"
    write_text(path, log)
    record_jobs(run, [Submitted("train", job_id, log=str(path))])
    return run


def queue(*jobs: tuple[str, str]) -> Completed:
    return Completed(0, "".join(f"{job}|{job}|{state}|None|10:00|1:00:00|N/A|v100-1|gpu|(null)\n"
                                for job, state in jobs))


def test_all_that_is_at_work_in_a_sweep_is_followed(
        here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("blip_art.cluster.sweep_logs.ASK_S", 0.0)
    first, second = submitted("s=1", "1_0", "epoch 0\n"), submitted("s=10", "1_1", "10%\r20%\nend")
    done = submitted("s=2", "1_2", "old\n", "finished")
    runs = runs_with_logs("runs/six")
    assert [run.path for run in runs] == [first.path, done.path, second.path]
    # s=10 is short: it waits, and is over when Slurm is asked again.
    answers = [queue(("1_0", "RUNNING"), ("1_1", "PENDING")), queue(("1_0", "RUNNING")), queue()]
    asked: list[Sequence[str]] = []

    def door(argv: Sequence[str]) -> Completed:
        asked.append(argv)
        return answers[min(len(asked), len(answers)) - 1]
    said: list[bytes] = []
    follow_all(runs, "", Slurm(door), said.append, sleep=lambda _: None)
    assert b"".join(said) == b"s=1  | epoch 0\ns=10 | 20%\ns=10 | end\n"
    assert "-- 1 of 3 runs at work, 1 wait\n" in capsys.readouterr().err
    with pytest.raises(UserError, match="none of 3 runs is queued or running"):
        follow_all(runs, "", NOBODY, said.append, sleep=lambda _: None)


def test_of_a_sweep_that_has_ended_the_failed_run_is_shown(here: Path, repo: Path) -> None:
    submitted("s=1", "1_0", "no memory\n", "failed")
    submitted("s=2", "1_1", "all is well\n", "finished")
    assert choose_run(runs_with_logs("runs/six"))[0].path == Path("runs/six/s=1")
    done = launch(repo, "logs", "runs/six")
    assert (done.returncode, done.stdout) == (0, "no memory\n")
    assert "runs/six has 2 runs with logs; this is runs/six/s=1." in done.stderr


def test_lines_are_whole_whatever_the_blocks_are() -> None:
    said: list[bytes] = []
    writer = LineWriter(said.append, "a")
    for block in (b"ep", b"och 0\nepo", b"ch 1\r\n", b"rest"):
        writer(block)
    writer.end()
    assert said == [b"a | epoch 0\n", b"a | epoch 1\n", b"a | rest\n"]
