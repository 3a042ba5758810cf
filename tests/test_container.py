"""Image, overlay and packed data: what is refused before submission, and the wrapper's command.

    python -m pytest tests/test_container.py      needs no container; tests/cluster has real ones
"""

from __future__ import annotations

import dataclasses
import gzip
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from blip_art.cluster import pack as packing
from blip_art.cluster.batch import wrapper_text
from blip_art.cluster.container import (
    Holder,
    _how_to_free,
    check_image,
    check_overlay,
    image_identity,
    lock_holder,
)
from blip_art.cluster.golden import golden_mistakes
from blip_art.cluster.image import build_image, image_plan, need_namespaces, need_space
from blip_art.cluster.overlay import build_overlay, overlay_plan
from blip_art.cluster.site import Site
from blip_art.errors import UserError

MKE2FS = shutil.which("mke2fs") or shutil.which("mke2fs", path="/sbin:/usr/sbin")
# A lock of the open file, as Apptainer takes it; the kernel does not say whose it is.
HOLD = """
import fcntl, os, struct, sys
file = open(sys.argv[1], "rb+")
kind = fcntl.F_WRLCK if sys.argv[2] == "write" else fcntl.F_RDLCK
fcntl.fcntl(file, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, 0, 0, 100, 0))
print("locked", flush=True)
sys.stdin.read()
"""
FAKE = """#!/usr/bin/env bash
[[ "$1 $2" == "--quiet exec" ]] || { echo "$1"; exit 3; }
echo "pid $$"; printf '%s\\n' "$@"; env | sort
"""


def make_overlay(path: Path, *folders: str, kind: str = "ext3") -> Path:
    if not MKE2FS:
        pytest.skip("no mke2fs (e2fsprogs) here")
    content = path.parent / f"{path.name} content"
    for folder in folders:
        (content / folder).mkdir(parents=True)
    subprocess.run([MKE2FS, "-q", "-t", kind, *(["-d", str(content)] if folders else []),
                    str(path), "4M"], check=True, capture_output=True)
    return path


@pytest.fixture
def overlay(tmp_path: Path) -> Path:
    return make_overlay(tmp_path / "overlay.img", "upper", "work")


@pytest.fixture
def held(overlay: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    """A process that has the overlay locked."""
    argv = [sys.executable, "-c", HOLD, str(overlay), request.param]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout
        assert holder.stdout.readline() == "locked\n"
        yield holder
        holder.communicate()


@pytest.mark.parametrize("kind", ["ext3", "ext4"])
def test_an_overlay_made_for_containers_passes(tmp_path: Path, kind: str) -> None:
    overlay = make_overlay(tmp_path / "good.img", "upper", "work", kind=kind)
    check_overlay(str(overlay), tasks=8)
    check_overlay(f"{overlay}:rw", tasks=1)
    check_overlay("", tasks=8)


@pytest.mark.parametrize(("name", "content", "said"), [
    ("absent.img", None, "no overlay at .*absent.img; build it with 'launch.py overlay build'"),
    ("empty.img", b"", "is empty"),
    ("text.img", b"#!/bin/sh\n" * 300, "neither ext3 nor squashfs"),
    ("a.ext3.gz", gzip.compress(b"x"), "gunzip"),
])
def test_what_is_no_overlay_is_refused_with_the_next_step(
        tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=said):
        check_overlay(str(tmp_path / name))


def test_a_template_that_was_not_unpacked_is_named(tmp_path: Path) -> None:
    (tmp_path / "overlay.img.gz").touch()
    with pytest.raises(UserError, match=r"gunzip -k .*overlay.img.gz"):
        check_overlay(str(tmp_path / "overlay.img"))


def test_a_file_system_made_with_mkfs_alone_is_refused(tmp_path: Path) -> None:
    plain = make_overlay(tmp_path / "plain.img")
    with pytest.raises(UserError, match=r"mkfs alone .* 'upper' and 'work'.*overlay create"):
        check_overlay(str(plain))


def test_a_writable_overlay_is_for_one_task(overlay: Path) -> None:
    with pytest.raises(UserError, match=r":rw can be used by one process only.* have 4"):
        check_overlay(f"{overlay}:rw", tasks=4)


@pytest.mark.parametrize("held", ["write"], indirect=True)
def test_the_process_that_writes_is_named(overlay: Path, held: subprocess.Popen[str]) -> None:
    with pytest.raises(UserError, match=rf"in use by process {held.pid} .*wait until it ends"):
        check_overlay(str(overlay))
    held.communicate()
    assert lock_holder(overlay) is None
    assert lock_holder(overlay, write=True) is None


@pytest.mark.parametrize("held", ["read"], indirect=True)
def test_readers_keep_out_writers_only(overlay: Path, held: subprocess.Popen[str]) -> None:
    check_overlay(str(overlay), tasks=8)
    with pytest.raises(UserError, match=str(held.pid)):
        check_overlay(f"{overlay}:rw", tasks=1)


def test_a_stale_lock_is_explained() -> None:
    left = Holder(77, "/usr/bin/fuse2fs -f -o allow_other /proc/self/fd/3 …")
    assert "killed container left it behind; end it with 'kill 77'" in _how_to_free([left])
    assert "stale" in _how_to_free([])


@pytest.mark.parametrize("content", [None, b"", b"hello"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.sif"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="launch.py image build"):
        check_image(str(path))


def test_identity_changes_with_a_rebuild_only(tmp_path: Path) -> None:
    first = image_identity(str(make_overlay(tmp_path / "a.img", "upper", "work")))
    second = image_identity(str(make_overlay(tmp_path / "b.img", "upper", "work")))
    assert first["header_sha256"] != second["header_sha256"]
    assert image_identity(str(tmp_path / "a.img")) == first


def fake_container(tmp_path: Path) -> Path:
    path = tmp_path / "bin" / "apptainer"
    path.parent.mkdir()
    path.write_text(FAKE)
    path.chmod(0o755)
    return path


def enter(repo: Path, cwd: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    cwd.mkdir(exist_ok=True)
    return subprocess.run([repo / "singularity" / "run.sh", *words], cwd=cwd, text=True,
                          capture_output=True, check=False, timeout=60,
                          env={"PATH": os.environ["PATH"], "USER": "me", **env})


def test_the_wrapper_enters_with_what_it_was_told(repo: Path, tmp_path: Path) -> None:
    (tmp_path / "a.sif").touch()
    (tmp_path / "o.img").touch()
    cwd = tmp_path / 'my, "art": 1'
    container = str(fake_container(tmp_path))
    done = enter(repo, cwd, "python", "-c", "print('a  b')", CONTAINER=container,
                 SIF=str(tmp_path / "a.sif"), OVERLAY=str(tmp_path / "o.img"), BINDS="/data:/d:ro",
                 SCRATCH=f"{tmp_path}/$SLURM_JOB_ID", SLURM_JOB_ID="12", PYTHONPATH="/run/code")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    scratch = f"{tmp_path}/12/blip_art-me-12"
    quoted = str(cwd).replace('"', '""')
    assert lines[1:15] == [
        "--quiet", "exec", "--pwd", str(cwd), "--mount", f'type=bind,"src={quoted}","dst={quoted}"',
        "--bind", scratch, "--bind", "/data:/d:ro",
        "--overlay", f"{tmp_path / 'o.img'}:ro", str(tmp_path / "a.sif"), "python"]
    assert lines[15:17] == ["-c", "print('a  b')"]
    assert {"PYTHONPATH=/run/code", f"TMPDIR={scratch}", "PYTHONNOUSERSITE=1", "HF_HUB_OFFLINE=1",
            "LC_ALL=C.UTF-8", "SLURM_JOB_ID=12"} <= set(lines)
    assert Path(scratch).stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("named", "own", "folder"), [
    ("$SCRATCH/jobs", "scratch", "scratch/jobs"),
    ("${SCRATCH}", "a$USER$SCRATCH", "a$USER$SCRATCH"),  # a value is not looked at again
    ("", "own_$USER", "own_me"),
])
def test_a_profile_can_name_the_users_own_scratch(
        repo: Path, tmp_path: Path, named: str, own: str, folder: str) -> None:
    (tmp_path / "a.sif").touch()
    wrapper = tmp_path / "wrapper.sh"
    site = Site(container=str(fake_container(tmp_path)), image=str(tmp_path / "a.sif"),
                overlay="", scratch=named, python="python")
    wrapper.write_text(wrapper_text(site, repo))
    done = subprocess.run(["bash", wrapper], cwd=tmp_path, text=True, capture_output=True,
                          check=False, timeout=30,
                          env={"PATH": os.environ["PATH"], "USER": "me", "SLURM_JOB_ID": "12",
                               "SCRATCH": f"{tmp_path}/{own}"})
    assert done.returncode == 0, done.stderr
    assert f"TMPDIR={tmp_path}/{folder}/blip_art-me-12\n" in done.stdout


def test_the_wrapper_becomes_the_container_so_that_signals_arrive(
        repo: Path, tmp_path: Path) -> None:
    (tmp_path / "a.sif").touch()
    env = {"PATH": os.environ["PATH"], "CONTAINER": str(fake_container(tmp_path)),
           "SIF": str(tmp_path / "a.sif"), "SCRATCH": str(tmp_path)}
    with subprocess.Popen([repo / "singularity" / "run.sh", "true"], stdout=subprocess.PIPE,
                          text=True, env=env) as process:
        assert process.communicate()[0].startswith(f"pid {process.pid}\n")


@pytest.mark.parametrize(("env", "said"), [
    ({"SIF": "nope.sif"}, r"error: no nope.sif on .*launch.py image build"),
    ({"OVERLAY": "nope.img"}, r"error: no nope.img on .*launch.py overlay build"),
    ({"CONTAINER": "nope"}, r"error: no nope on .*modules"),
    ({"SCRATCH": "/proc/nope"}, r"error: cannot write to scratch folder /proc/nope"),
    ({"SCRATCH": "$NOPE/x"}, r"error: SCRATCH is \$NOPE/x and .* has no NOPE"),
    ({"SCRATCH": "$SCRATCH"}, r"error: SCRATCH is \$SCRATCH and .* has no SCRATCH"),
    ({"BLIP_ART_SCRATCH": "$SCRATCH/x"}, r"error: scratch is \$SCRATCH/x and .* has no SCRATCH"),
])
def test_the_wrapper_says_what_the_node_lacks(
        repo: Path, tmp_path: Path, env: dict[str, str], said: str) -> None:
    (tmp_path / "a.sif").touch()
    whole = {"CONTAINER": str(fake_container(tmp_path)), "SIF": str(tmp_path / "a.sif")}
    done = enter(repo, tmp_path, "true", **{**whole, **env})
    assert done.returncode == 2
    assert re.search(said, done.stderr), done.stderr


@pytest.fixture
def other() -> int:
    """The number of an account that is not the tests' own; only root can make files its."""
    if os.geteuid() != 0 and os.environ.get("CI") != "true":
        pytest.skip("files of a second account need root")
    return 65534


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    """A folder like /tmp, in which everybody can make files."""
    path = tmp_path / "shared"
    path.mkdir()
    path.chmod(0o1777)
    return path


def plant(folder: Path, ran: Path, owner: int, mode: int = 0o755) -> None:
    """A folder as singularity/run.sh makes them, whose programs leave a file."""
    (folder / "fuse").mkdir(parents=True, mode=0o755)
    for name in ("apptainer", "env", "python3", "mkdir", "chmod", "mv"):
        program = folder / "fuse" / name
        program.write_text(f"#!/bin/sh\ntouch {ran}\n")
        program.chmod(0o755)
    for path in (*folder.rglob("*"), folder):
        os.chown(path, owner, owner)
    folder.chmod(mode)


@pytest.mark.parametrize("planted", ["folder", "link", "open", "fuse", "file"])
def test_what_another_user_put_into_scratch_does_not_run(
        repo: Path, tmp_path: Path, shared: Path, other: int, planted: str) -> None:
    ran, first = tmp_path / "ran", shared / "blip_art-me-7"
    if planted == "folder":
        plant(first, ran, other, 0o777)
    elif planted == "link":
        plant(shared / "theirs", ran, os.geteuid())
        first.symlink_to(shared / "theirs")
        os.chown(first, other, other, follow_symlinks=False)
    elif planted == "open":  # others may have put anything there, and go on to
        plant(first, ran, os.geteuid(), 0o777)
    elif planted == "fuse":
        plant(first, ran, other)
        os.chown(first, os.geteuid(), -1)
    else:
        first.touch()
    (tmp_path / "a.sif").touch()
    done = enter(repo, tmp_path, "true", SIF=str(tmp_path / "a.sif"), SCRATCH=str(shared),
                 SLURM_JOB_ID="7", PATH=f"{fake_container(tmp_path).parent}:{os.environ['PATH']}")
    assert not ran.exists()
    assert done.returncode == 0, done.stderr
    [taken] = [Path(line[7:]) for line in done.stdout.splitlines() if line.startswith("TMPDIR=")]
    assert taken.parent == shared
    assert (taken == first) == (planted == "fuse")
    assert (taken.stat().st_uid, taken.stat().st_mode & 0o022) == (os.geteuid(), 0)
    [path] = [line[5:] for line in done.stdout.splitlines() if line.startswith("PATH=")]
    for folder in map(Path, path.split(":")):
        assert shared not in folder.parents or folder.stat().st_uid == os.geteuid()


@pytest.fixture
def lab() -> Iterator[Path]:
    """A folder of a group, which the group's other members reach."""
    with tempfile.TemporaryDirectory(prefix="blip_art_lab_") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.parametrize("mode", [0o2770, 0o3770])
def test_a_member_of_the_group_gets_nothing_run(
        repo: Path, tmp_path: Path, lab: Path, other: int, mode: int) -> None:
    """A second account plants the folder of the next job, and exchanges that of this one."""
    scratch, group = lab / "scratch", 64999
    scratch.mkdir()
    os.chown(scratch, -1, group)
    scratch.chmod(mode)
    (tmp_path / "a.sif").touch()
    container = fake_container(tmp_path)
    planting = """cd "$0"; mv blip_art-me-7 away
        for folder in blip_art-me-7 blip_art-me-8; do
            mkdir -p $folder/fuse || continue
            for name in apptainer env python3 mkdir chmod mv; do
                printf '#!/bin/sh\\ntouch %s\\n' "$0/ran" >$folder/fuse/$name
            done
            chmod -R 755 $folder
        done"""

    def job(number: str) -> subprocess.CompletedProcess[str]:
        return enter(repo, tmp_path, "true", SIF=str(tmp_path / "a.sif"), SCRATCH=str(scratch),
                     SLURM_JOB_ID=number, PATH=f"{container.parent}:{os.environ['PATH']}")
    done = [job("7")]
    subprocess.run(["bash", "-c", planting, scratch], check=False, capture_output=True,
                   user=other, group=other, extra_groups=[group])
    assert (scratch / "blip_art-me-8").stat().st_uid == other
    done += [job("7"), job("8")]
    assert not (scratch / "ran").exists()
    if mode == 0o2770:  # there they can rename what is not theirs, too
        assert (scratch / "blip_art-me-7").stat().st_uid == other
        assert [step.returncode for step in done] == [2, 2, 2]
        assert "other users can put their own files in the place of" in done[0].stderr
        return
    places = [re.findall(rf"^TMPDIR={scratch}/(.*)", step.stdout, re.MULTILINE) for step in done]
    assert places[:2] == [["blip_art-me-7"], ["blip_art-me-7"]], done
    assert re.fullmatch(r"blip_art-me-8\.\w{6}", places[2][0])


@pytest.mark.parametrize("way", ["group", "folder_of_group", "own_group"])
def test_a_scratch_of_a_group_is_refused_where_it_has_other_members(
        repo: Path, tmp_path: Path, other: int, way: str) -> None:
    scratch = tmp_path / "lab" / "scratch"
    scratch.mkdir(parents=True)
    open_to_group = scratch.parent if way == "folder_of_group" else scratch
    os.chown(open_to_group, -1, os.getegid() if way == "own_group" else other)
    open_to_group.chmod(0o2770)
    (tmp_path / "a.sif").touch()
    done = enter(repo, tmp_path, "true", CONTAINER=str(fake_container(tmp_path)),
                 SIF=str(tmp_path / "a.sif"), SCRATCH=str(scratch))
    assert done.returncode == (0 if way == "own_group" else 2), done.stderr


def test_steps_of_a_job_share_its_scratch_folder(repo: Path, tmp_path: Path, shared: Path) -> None:
    (tmp_path / "a.sif").touch()
    settings = {"CONTAINER": str(fake_container(tmp_path)), "SIF": str(tmp_path / "a.sif"),
                "SCRATCH": str(shared), "SLURM_JOB_ID": "7"}
    for _ in range(2):
        done = enter(repo, tmp_path, "true", **settings)
        assert f"TMPDIR={shared}/blip_art-me-7\n" in done.stdout
    assert len(list(shared.iterdir())) == 1


@pytest.mark.parametrize("way", ["open", "theirs", "link"])
def test_a_scratch_that_others_can_exchange_is_refused(
        repo: Path, tmp_path: Path, shared: Path, other: int, way: str) -> None:
    scratch = shared / "scratch"
    if way == "link":
        (tmp_path / "elsewhere").mkdir()
        scratch.symlink_to(tmp_path / "elsewhere")
    else:
        scratch.mkdir()
        scratch.chmod(0o777 if way == "open" else 0o1777)
    os.chown(scratch, os.geteuid() if way == "open" else other, -1, follow_symlinks=False)
    (tmp_path / "a.sif").touch()
    done = enter(repo, tmp_path, "true", CONTAINER=str(fake_container(tmp_path)),
                 SIF=str(tmp_path / "a.sif"), SCRATCH=f"{scratch}/me")
    assert done.returncode == 2
    assert re.fullmatch("error: other users can put their own files in the place of scratch folder "
                        rf"{scratch}/me on .*\n", done.stderr), done.stderr


class Builder:
    """A door that writes down what would be run."""

    def __init__(self, code: int, content: bytes = b"") -> None:
        self.code, self.content = code, content
        self.argv: Sequence[str] = ()

    def __call__(self, argv: Sequence[str], env: dict[str, str]) -> int:
        self.argv = argv
        next(Path(word) for word in argv if ".tmp" in word).write_bytes(self.content)
        return self.code


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(container=str(fake_container(tmp_path)), image=str(tmp_path / "a.sif"),
                build_binds=("/etc/pip.conf",))


def test_an_image_is_built_aside_on_a_base_of_this_machine(site: Site, tmp_path: Path) -> None:
    build = Builder(0, b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0")
    build_image(image_plan(site, tmp_path / "a.sif", base=str(tmp_path)), run=build)
    assert build.argv[1:10] == [
        "build", "--fakeroot", "--force", "--build-arg", "BOOTSTRAP=localimage", "--build-arg",
        f"FROM={tmp_path}", "--bind", "/etc/pip.conf"]
    assert (tmp_path / "a.sif").read_bytes() == build.content


def test_what_a_site_binds_and_sets_reaches_the_build(site: Site, tmp_path: Path) -> None:
    site = dataclasses.replace(site, build_binds=("/etc/pki/a.crt:/etc/ssl/own.crt", "/usr:/opt/u"),
                               build_setup={"PIP_INDEX_URL": "http://it's/here"})
    plan = image_plan(site, tmp_path / "a.sif")
    assert {"FILES=/etc/pip.conf /etc/ssl/own.crt", "FOLDERS=/opt/blip_art /opt/u"} <= {*plan.argv}
    told = ""

    def build(argv: Sequence[str], env: dict[str, str]) -> int:
        nonlocal told
        file = argv[argv.index("--bind") + 1].removesuffix(":/opt/blip_art/build.env")
        told = subprocess.run(["sh", "-c", f". {file}; echo $PIP_INDEX_URL"], text=True,
                              capture_output=True, check=True).stdout
        return 1
    with pytest.raises(UserError):
        build_image(plan, run=build)
    assert told == "http://it's/here\n"


def test_a_docker_base_is_told_from_a_folder(site: Site, tmp_path: Path) -> None:
    shown = image_plan(site, tmp_path / "a.sif", base="python:3.12-slim").shown()
    assert "--build-arg BOOTSTRAP=docker --build-arg FROM=python:3.12-slim" in shown


def test_singularityce_is_not_asked_for_what_it_does_not_know(site: Site, tmp_path: Path) -> None:
    assert "--mksquashfs-args" in image_plan(site, tmp_path / "a.sif").argv
    Path(site.container).write_text("#!/bin/sh\necho singularity-ce version 4.5.1\n")
    assert "--mksquashfs-args" not in image_plan(site, tmp_path / "a.sif").argv
    with pytest.raises(UserError, match="leave --squashfs out"):
        image_plan(site, tmp_path / "a.sif", squashfs="-comp lz4")


@pytest.mark.parametrize("build", [Builder(1), Builder(0, b"half")])
def test_a_build_that_fails_leaves_nothing(site: Site, tmp_path: Path, build: Builder) -> None:
    with pytest.raises(UserError, match=r"see .* words above|is no image"):
        build_image(image_plan(site, tmp_path / "a.sif"), run=build)
    assert list(tmp_path.glob("*sif*")) == list(tmp_path.glob(".*sif*")) == []


def test_a_base_that_is_not_reached_has_a_way_out(site: Site, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--base .*PIP_INDEX_URL.*certificates.*copy the file"):
        build_image(image_plan(site, tmp_path / "a.sif"), run=Builder(1))
    with pytest.raises(UserError) as local:
        build_image(image_plan(site, tmp_path / "a.sif", base=str(tmp_path)), run=Builder(1))
    assert "--base" not in str(local.value)


def test_what_a_killed_build_left_is_removed(site: Site, tmp_path: Path) -> None:
    host = os.uname().nodename
    with subprocess.Popen(["true"]) as dead:
        pass
    left, running = (tmp_path / f".a.sif.{host}.{pid}.tmp" for pid in (dead.pid, os.getppid()))
    left.touch()
    running.touch()
    with pytest.raises(UserError):
        build_image(image_plan(site, tmp_path / "a.sif"), run=Builder(1))
    assert (left.exists(), running.exists()) == (False, True)


def test_ctrl_c_lets_the_builder_clean_up(tmp_path: Path) -> None:
    """It may take as long as it needs; only then the launcher ends, as interrupted."""
    code = ("import sys; from blip_art.cluster.image import call\n"
            "try: call(sys.argv[1:], {})\n"
            "except KeyboardInterrupt: print('interrupted')")
    builder = f"trap 'sleep 1; touch {tmp_path}/clean; exit 1' INT; echo up; sleep 60 & wait"
    with subprocess.Popen([sys.executable, "-c", code, "bash", "-c", builder], text=True,
                          stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "up\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.communicate()[0] == "interrupted\n"
    assert (tmp_path / "clean").exists()


def test_what_is_there_is_replaced_on_demand_only(site: Site, tmp_path: Path) -> None:
    (tmp_path / "a.sif").touch()
    with pytest.raises(UserError, match=r"there is an image at .*--force"):
        build_image(image_plan(site, tmp_path / "a.sif"), run=Builder(0))


@pytest.mark.parametrize("held", ["read"], indirect=True)
def test_an_overlay_in_use_is_not_built_anew(
        site: Site, overlay: Path, held: subprocess.Popen[str]) -> None:
    Path(site.image).write_bytes(b"hsqs")
    with pytest.raises(UserError, match=rf"in use by process {held.pid}"):
        build_overlay(site, overlay_plan(site, overlay), force=True, run=Builder(0))


def test_building_asks_for_space_and_namespaces_first(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"GB free and building needs 1000000; set X"):
        need_space(str(tmp_path), 1_000_000, "set X")
    (tmp_path / "max").write_text("0\n")
    with pytest.raises(UserError, match="no user namespaces"):
        need_namespaces(tmp_path / "max")


def test_known_scores_are_compared_one_by_one() -> None:
    good = {"Bleu_1": 0.862069, "Bleu_2": 0.643268, "Bleu_3": 0.461861, "Bleu_4": 0.328117,
            "METEOR": 0.373714, "ROUGE_L": 0.652738, "CIDEr": 2.398839, "SPICE": 0.432418}
    assert golden_mistakes({"metrics": good}) == []
    assert golden_mistakes({"metrics": {**good, "SPICE": float("nan")}}) == [
        "SPICE is nan instead of 0.432418"]


@pytest.mark.skipif(not shutil.which("mksquashfs"), reason="no mksquashfs (squashfs-tools) here")
def test_a_folder_is_packed_and_the_way_to_mount_it_told(tmp_path: Path) -> None:
    folder = tmp_path / "my pictures"
    (folder / "b").mkdir(parents=True)
    for name in ("a.jpg", "b/c.jpg"):
        (folder / name).write_bytes(os.urandom(5000))
    packed = packing.pack(folder, tmp_path / "p.sqf")
    listed = subprocess.run(["unsquashfs", "-l", packed], capture_output=True, text=True,
                            check=True).stdout
    assert listed.splitlines()[-4:] == [
        "squashfs-root", "squashfs-root/a.jpg", "squashfs-root/b", "squashfs-root/b/c.jpg"]
    assert f"- {packed}:{folder}:image-src=/,ro" in packing.how_to_mount(packed, folder)


def test_a_folder_is_not_packed_into_itself(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match="lies in the folder"):
        packing.pack(tmp_path, tmp_path / "p.sqf")
