"""launch.py and the jobs it runs: plans word for word, and real submitit jobs with tiny commands.

    python -m pytest tests/test_launch.py
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from blip_art.cluster.beside import Beside
from blip_art.cluster.jobs import Job
from blip_art.cluster.local import run_debug, run_local
from blip_art.cluster.plan import (
    Place,
    collect_job,
    dry_run_text,
    follow_job,
    next_log,
    pick_gpus,
    predict_job,
    score_job,
    train_job,
)
from blip_art.errors import UserError
from blip_art.files import RunDir

GOLDEN = Path(__file__).parent / "golden"
PLACE = Place(python="/venv/bin/python", cwd="/home/me/my art", code="/home/me/runs/a/code",
              cache="/home/me/blip-art/.cache/blip_art",
              processes=4, gpus=("0", "1", "2", "3"), threads=10)
CONFIG = "name: tiny\ntrain:\n  epochs: 1\n"


def launch(*args: str, cwd: Path, repo: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(repo / "launch.py"), *args], cwd=cwd, text=True,
                          capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=60)


def python_job(tmp_path: Path, repo: Path, code: str, **fields: object) -> Job:
    return Job("probe", (sys.executable, "-c", code), cwd=str(tmp_path), log="slurm/probe_000.log",
               env={"PYTHONPATH": str(repo), "PYTHONUNBUFFERED": "1"}, **fields)  # type: ignore[arg-type]


def test_plan_matches_golden(tmp_path: Path) -> None:
    run = RunDir("runs/a b")
    jobs = [train_job(PLACE, "configs/caption_art.yaml", run, ["train.lr=5e-5"]),
            predict_job(PLACE, run, ["--split", "test"]), score_job(PLACE, run),
            follow_job(PLACE, run), collect_job(PLACE, [run, RunDir("runs/c")], Path("report"))]
    assert dry_run_text(jobs) == (GOLDEN / "dry_run.txt").read_text(encoding="utf-8")


def test_the_demo_is_for_one_machine(tmp_path: Path, repo: Path) -> None:
    done = launch("demo", "--cluster", "slurm", cwd=tmp_path, repo=repo)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "the demo runs on one machine" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_cpu_plan_hides_gpus_and_debug_plan_has_no_log() -> None:
    place = Place(python="python", cwd="/", code="/code", processes=2, attached=True)
    job = train_job(place, "a.yaml", RunDir("runs/a"))
    assert job.env["CUDA_VISIBLE_DEVICES"] == ""
    assert job.log == ""


def test_more_processes_than_gpus_is_refused() -> None:
    with pytest.raises(UserError, match=r"--processes 3 is more than the 2 GPU"):
        pick_gpus(["0", "1"], 3)
    assert pick_gpus([], 3) == ()


def test_logs_are_numbered_by_number_not_by_name(tmp_path: Path) -> None:
    for number in ("009", "1000"):
        (tmp_path / f"train_{number}.log").touch()
    assert next_log(tmp_path, "train").name == "train_1001.log"
    assert next_log(tmp_path, "score").name == "score_000.log"


def test_job_runs_in_the_users_folder_with_its_environment(
        tmp_path: Path, repo: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    job = python_job(tmp_path, repo, "import os; print(os.getcwd(), os.environ['PYTHONPATH'])")
    assert run_local(job) == 0
    said = f"{tmp_path} {repo}\n".encode()
    assert (tmp_path / job.log).read_bytes() == said
    assert capfdbinary.readouterr().err == said
    assert list((tmp_path / "slurm" / "submitit").iterdir()) == []


def test_an_interpreter_in_a_folder_with_an_equals_sign_runs_jobs(
        tmp_path: Path, repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = tmp_path / "lr=1e-5"
    venv.symlink_to(sys.prefix)
    monkeypatch.setattr("sys.executable", str(venv / "bin" / "python"))
    assert run_local(python_job(tmp_path, repo, "raise SystemExit(3)")) == 3


@pytest.mark.parametrize(("code", "expected"), [
    ("raise SystemExit(2)", 2), ("1 / 0", 1), ("import os; os.kill(os.getpid(), 9)", 137)])
def test_exit_code_is_passed_on(tmp_path: Path, repo: Path, code: str, expected: int) -> None:
    assert run_local(python_job(tmp_path, repo, code)) == expected


def test_watched_job_has_a_terminal_of_the_watchers_width(tmp_path: Path, repo: Path) -> None:
    job = python_job(tmp_path, repo, "import os, sys\nsys.stdout.write('\\r50%\\r100%\\n')\n"
                     "print(sys.stderr.isatty(), os.get_terminal_size(2).columns)", columns=123)
    assert run_local(job) == 0
    assert (tmp_path / job.log).read_bytes() == b"\r50%\r100%\nTrue 123\n"


def test_debug_runs_in_the_terminal(
        tmp_path: Path, repo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    job = Job("probe", (sys.executable, "-c", "print(40 + 2); raise SystemExit(3)"))
    assert run_debug(job) == 3
    assert "42" in capfd.readouterr().out


READS_TO_THE_END = """
import os, sys
sys.stdin.read()
print("all is scored", os.getpid())
raise SystemExit(3)
"""


def test_a_follower_ends_when_told_and_is_shown(
        tmp_path: Path, repo: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Beside(python_job(tmp_path, repo, READS_TO_THE_END)) as follower:
        assert follower.finish() == 3
    assert "all is scored" in capfd.readouterr().err


def test_a_follower_does_not_outlive_a_job_that_failed(tmp_path: Path, repo: Path) -> None:
    job = python_job(tmp_path, repo, "import os, time; print(os.getpid()); time.sleep(99)")
    log = tmp_path / job.log
    with Beside(job):
        while not log.read_text():
            time.sleep(0.05)
    assert not Path(f"/proc/{log.read_text().strip()}").exists()


STARTS_A_SESSION = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"],
                         start_new_session=True)
print(child.pid)
sys.stdin.read()
child.kill()
"""


def test_what_a_follower_starts_stays_behind_training(tmp_path: Path, repo: Path) -> None:
    job = python_job(tmp_path, repo, STARTS_A_SESSION)
    log = tmp_path / job.log
    with Beside(job) as follower:
        while not log.read_text():
            time.sleep(0.05)
        group = Path(f"/proc/{log.read_text().strip()}/autogroup")
        end = time.monotonic() + 20
        # A kernel that does not share by sessions has no such file, or nothing in it.
        while group.exists() and group.read_text().endswith("nice 0\n"):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert follower.finish() == 0


LAUNCHER = """
import sys
from blip_art.cluster.beside import Beside
from blip_art.cluster.jobs import Job
from blip_art.cluster.local import run_local
sys.exit(run_local(Job("probe", (sys.executable, "-c", sys.argv[1]), cwd=sys.argv[2],
                       log="probe.log", env={"PYTHONPATH": sys.argv[3], "PYTHONUNBUFFERED": "1"})))
"""
SAVES_ON_CTRL_C = """
import subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"],
                          start_new_session=True)
print("ready", worker.pid)
try:
    time.sleep(99)
except KeyboardInterrupt:
    time.sleep(1.5)
    open("saved", "w").close()
"""
IGNORES_CTRL_C = """
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready 0")
time.sleep(99)
"""


def start_launcher(code: str, tmp_path: Path, repo: Path) -> tuple[subprocess.Popen[str], int]:
    """A launcher in a session of its own, as in a terminal; and the pid its job printed."""
    process = subprocess.Popen([sys.executable, "-c", LAUNCHER, code, str(tmp_path), str(repo)],
                               cwd=repo, start_new_session=True, text=True, stderr=subprocess.PIPE)
    assert process.stderr
    words = process.stderr.readline().split()
    assert words[0] == "ready"
    return process, int(words[1])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_lets_the_job_save_and_leaves_nothing_running(
        tmp_path: Path, repo: Path, signum: signal.Signals) -> None:
    process, worker = start_launcher(SAVES_ON_CTRL_C, tmp_path, repo)
    os.killpg(process.pid, signum)  # what a terminal does, and what closing it does
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopping the job" in said
    assert (tmp_path / "saved").exists()
    assert not Path(f"/proc/{worker}").exists()


def test_further_ctrl_c_ends_a_job_that_does_not_listen(tmp_path: Path, repo: Path) -> None:
    process, _ = start_launcher(IGNORES_CTRL_C, tmp_path, repo)
    for _ in range(3):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.5)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_dry_run_shows_the_command_and_writes_nothing(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    done = launch("train", "tiny.yaml", "--processes", "2", "--run", "here", "seed=7",
                  "--python", "/venv/python", "--dry-run", cwd=tmp_path, repo=repo)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == (
        "/venv/python -m blip_art.torchrun --standalone --nproc_per_node=2 "
        "-m blip_art.train tiny.yaml seed=7 --run here --resume").split()
    assert "--follow here --until-eof" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(("args", "message"), [
    (["train", "no.yaml"], "cannot read configuration no.yaml"),
    (["train", "tiny.yaml", "train.batchsize=1"], "did you mean 'train.batch_size'"),
    (["score", "--run", "runs/none"], "no run folder at runs/none"),
    (["train", "tiny.yaml", "--cluster", "slurm"], "no site profile: copy configs"),
    (["train", "tiny.yaml", "--processes", "0"], "must be a whole number above 0"),
    (["train", "tiny.yaml", "--proceses", "2"], "unknown argument --proceses")])
def test_users_mistake_is_one_line_and_exit_code_2(
        tmp_path: Path, repo: Path, args: list[str], message: str) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    done = launch(*args, cwd=tmp_path, repo=repo)
    assert done.returncode == 2
    assert message in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_failed_job_names_its_log(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "run").mkdir()
    done = launch("score", "--run", "run", "--python", "/bin/false", cwd=tmp_path, repo=repo)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith("its log: run/slurm/score_000.log")


def test_jobs_import_the_snapshot_even_in_the_checkout(tmp_path: Path, repo: Path) -> None:
    """An edit of the checkout after submission must not reach the job."""
    interpreter = tmp_path / "python"
    interpreter.write_text(f"#!/bin/sh\nexec {sys.executable} -c '"
                           "import json, blip_art; print(json.dumps(blip_art.__file__))'\n")
    interpreter.chmod(0o755)
    (tmp_path / "run").mkdir()
    done = launch("score", "--run", str(tmp_path / "run"), "--python", str(interpreter),
                  cwd=repo, repo=repo)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr) == str(tmp_path / "run" / "code" / "blip_art" / "__init__.py")


def test_a_slurm_dry_run_needs_neither_slurm_nor_a_profile(tmp_path: Path, repo: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIG)
    done = launch("train", "tiny.yaml", "--cluster", "slurm", "--dry-run", cwd=tmp_path, repo=repo)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --gres=gpu:v100:4" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
