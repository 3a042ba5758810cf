"""What 'launch.py shell' starts, here and on a node, and with which exit code it ends.

    python -m pytest tests/test_shell.py
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from blip_art.cluster.shell import Node, Plan, plan_shell, run
from blip_art.cluster.site import Site
from blip_art.errors import UserError

SITE = Site(path="/s.yaml", partition="gpu", cpu_partition="cpu", account="art", mem_gb=180,
            image="/i.sif", overlay="/o.img", parses="", modules=("apptainer/1.4",),
            sbatch={"constraint": "v100-32g", "exclusive": True, "requeue": True})
# Stands for Apptainer: runs what it was to run inside, and writes down how it was called.
CONTAINER = """#!/bin/bash
printf '%s\\n' "$@" "TMPDIR=$TMPDIR" "BINDS=$BINDS" >called
while [[ $1 != *.sif ]]; do shift; done
shift
exec "$@"
"""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site whose container runs things here, and whose scratch can be looked at."""
    monkeypatch.chdir(tmp_path)
    for name in ("i.sif", "o.img", "apptainer", "bin/python3"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(CONTAINER if name == "apptainer" else "#!/bin/sh\necho own python\n")
        Path(name).chmod(0o755)
    (tmp_path / "my scratch").mkdir()
    monkeypatch.setenv("MINE", "my scratch")
    return Site(container=str(tmp_path / "apptainer"), image=str(tmp_path / "i.sif"),
                overlay=str(tmp_path / "o.img"), parses=str(tmp_path / "parses.sqlite"),
                scratch=str(tmp_path / "${MINE}"), python=str(tmp_path / "bin/python3"),
                setup=("export SAID=from-setup",))


def called(plan: Plan) -> subprocess.CompletedProcess[str]:
    done: list[subprocess.CompletedProcess[str]] = []

    def call(argv: Sequence[str], environment: dict[str, str]) -> int:
        done.append(subprocess.run(argv, env=environment, text=True, capture_output=True,
                                   check=False, stdin=subprocess.DEVNULL))
        return done[0].returncode
    run(plan, call)
    return done[0]


def test_a_command_runs_inside_and_its_exit_code_is_passed_on(site: Site, tmp_path: Path) -> None:
    words = ("sh", "-c", 'python3; echo "$1 $SAID $(ls "$BLIP_ART_SCRATCH")"; exit 7', "x",
             "a 'b' $c")
    done = called(plan_shell(site, None, words, binds=["/data:/d:ro"]))
    assert done.returncode == 7, done.stderr
    assert done.stdout.split("\n")[0] == "own python"
    assert "a 'b' $c from-setup blip_art" in done.stdout
    said = Path("called").read_text()
    assert f"--overlay\n{tmp_path}/o.img:ro" in said
    assert "BINDS=/data:/d:ro," in said
    assert f"TMPDIR={tmp_path}/my scratch/" in said
    assert not os.listdir(tmp_path / "my scratch")  # taken away at the end


def test_scratch_that_names_nothing_here_is_an_error(
        site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MINE")
    done = called(plan_shell(site, None, ("true",)))
    assert done.returncode
    assert "MINE: is not set here" in done.stderr


def test_a_node_is_asked_for_with_the_profiles_settings() -> None:
    plan = plan_shell(SITE, Node(gpus=2, time_min=30), terminal=True)
    asked = plan.argv[:plan.argv.index("bash")]
    assert asked == (
        "srun", "--pty", "--job-name=blip_art-shell", "--account=art", "--partition=gpu",
        "--time=30", "--nodes=1", "--ntasks=1", "--cpus-per-task=16", "--mem=90GB",
        "--gres=gpu:v100:2", "--constraint=v100-32g", "--exclusive")
    assert plan.script.startswith("module load apptainer/1.4 || exit 1\n")
    assert "--norc" in plan.script
    plain = plan_shell(SITE, Node(), ("true",), terminal=False)
    assert plain.argv[:4] == ("srun", "--job-name=blip_art-shell", "--account=art",
                              "--partition=cpu")
    assert "gres" not in " ".join(plain.argv)
    with pytest.raises(UserError, match="--gpus 8: nodes have 4"):
        plan_shell(SITE, Node(gpus=8))


def test_inside_a_job_another_job_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    seen: dict[str, str] = {}

    def call(argv: Sequence[str], environment: dict[str, str]) -> int:
        seen.update(environment)
        return 0
    assert run(plan_shell(SITE, Node(), ("true",)), call) == 0
    assert "SLURM_JOB_ID" not in seen
    assert seen["LC_ALL"] == "de_DE.UTF-8"


@pytest.mark.parametrize(("words", "port"), [
    (("/v/bin/jupyter", "lab"), str(20_000 + os.getuid() % 10_000)),
    (("jupyter", "lab", "--port", "9000"), "9000"),
    (("python3", "-m", "jupyterlab", "--ip=10.0.0.1"), "")])
def test_a_notebook_says_how_it_is_reached(words: tuple[str, ...], port: str) -> None:
    script = plan_shell(SITE, Node(gpus=1), words).script
    assert re.search(rf"ssh -N -L ({port or '[0-9]+'}):\$\{{SLURMD_NODENAME:-.*\}}:\1 \S+@", script)
    last = script.splitlines()[-1]
    assert last.count("--port") == 2  # --port and --port-retries
    assert last.count("--ip") == 1
    assert "--ip=127.0.0.1" in plan_shell(SITE, None, ("jupyter", "lab")).script


def test_any_server_can_have_a_port() -> None:
    script = plan_shell(SITE, None, ("python3", "-m", "http.server", "8123"), port=8123).script
    assert "ssh -N -L 8123:localhost:8123" in script
    assert "--no-browser" not in script


def test_a_missing_image_is_named_before_anything_starts(repo: Path, tmp_path: Path) -> None:
    def said(*words: str, **env: str) -> str:
        done = subprocess.run([sys.executable, repo / "launch.py", "shell", *words], cwd=tmp_path,
                              text=True, capture_output=True, check=False,
                              env={**os.environ, "PATH": "/usr/bin:/bin", **env})
        assert done.returncode == 2, done.stderr
        return done.stderr
    profile = tmp_path / "s.yaml"
    profile.write_text("image: no.sif\n")
    assert "no image at" in said("--site", str(profile))
    assert "no site profile" in said("--gpus", "1", BLIP_ART_SITE="")
    profile.write_text("container: ''\npython: python3\n")
    if not Path("/usr/bin/srun").exists():
        assert "no srun on this machine" in said("--cpu", "--site", str(profile))


def test_a_site_without_a_container_runs_it_as_it_is(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text(f"container: ''\npython: {sys.executable}\nparses: p.sqlite\n")
    done = subprocess.run([sys.executable, repo / "launch.py", "shell", "--site", "s.yaml", "--",
                           "python3", "-c", "import blip_art, sys; print(sys.argv); sys.exit(5)",
                           "--gpus", "x y"], cwd=tmp_path, text=True, capture_output=True,
                          check=False)
    assert (done.returncode, done.stdout) == (5, "['-c', '--gpus', 'x y']\n"), done.stderr
