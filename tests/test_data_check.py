"""Pictures are decoded once: what was found is kept, believed where it may be, and shared."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from blip_art.data import checked
from blip_art.data.check import DECODER, find_bad_pictures
from blip_art.data.checked import NAME, KeptChecks
from blip_art.score.lock import taken

GOOD = [f"{number}.png" for number in range(6)]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The user's, of this test alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures").mkdir()
    for number, name in enumerate(GOOD):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "pictures" / name)
    return tmp_path / "pictures"


def damage_unseen(path):
    """Other content of the same size and time: only who decodes it again can tell."""
    status = path.stat()
    path.write_bytes(b"x" * status.st_size)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def lines(folder):
    return [json.loads(line) for line in (folder / NAME).read_text().splitlines()]


def test_bad_pictures_are_named_in_order_and_again_without_decoding(folder):
    (folder / "text.jpg").write_text("this is text")
    (folder / "cut.png").write_bytes((folder / "0.png").read_bytes()[:-30])
    names = ["text.jpg", *GOOD, "cut.png", "none.png", "x" * 300]
    first = find_bad_pictures(folder, names)
    assert list(first) == ["text.jpg", "cut.png", "none.png", "x" * 300]
    assert first["text.jpg"] == "not a picture"
    assert first["none.png"] == "missing"
    for name in GOOD:
        damage_unseen(folder / name)
    assert find_bad_pictures(folder, names) == first


def test_only_what_has_changed_is_decoded_again(folder):
    assert find_bad_pictures(folder, GOOD) == {}
    for name in GOOD[:3]:
        damage_unseen(folder / name)
    os.utime(folder / "1.png", ns=(5, 5))
    (folder / "2.png").write_text("shorter")
    assert set(find_bad_pictures(folder, GOOD)) == {"1.png", "2.png"}


def test_the_check_is_that_of_the_pictures_whatever_they_are_reached_by(folder, tmp_path):
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "data").symlink_to(folder)
    find_bad_pictures(folder, GOOD)
    damage_unseen(folder / "0.png")
    assert find_bad_pictures(folder, [f"data/{name}" for name in GOOD]) == {}
    assert find_bad_pictures(tmp_path / "root", [f"data/{name}" for name in GOOD]) == {}


def test_times_in_whole_seconds_are_the_same_times(folder):
    find_bad_pictures(folder, GOOD)
    damage_unseen(folder / "0.png")
    second = folder.joinpath("0.png").stat().st_mtime_ns // 10**9 * 10**9
    os.utime(folder / "0.png", ns=(second, second))
    assert find_bad_pictures(folder, GOOD) == {}


def test_where_the_folder_takes_nothing_the_users_cache_does(folder, cache):
    (folder / NAME).mkdir()
    find_bad_pictures(folder, GOOD)
    damage_unseen(folder / "0.png")
    assert find_bad_pictures(folder, GOOD) == {}
    [kept] = cache.rglob("*.jsonl")
    assert len(kept.read_text().splitlines()) == len(GOOD)


def test_without_any_place_the_check_is_made_and_says_so(folder, cache, capsys):
    (folder / NAME).mkdir()
    cache.write_text("a file in the way")
    damage_unseen(folder / "0.png")
    assert set(find_bad_pictures(folder, GOOD)) == {"0.png"}
    assert "cannot be kept" in capsys.readouterr().err


def test_a_file_that_anybody_may_write_is_not_believed(folder):
    find_bad_pictures(folder, GOOD)
    damage_unseen(folder / "0.png")
    (folder / NAME).chmod(0o666)
    assert set(find_bad_pictures(folder, GOOD)) == {"0.png"}


@pytest.mark.parametrize("place", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_a_link_is_neither_believed_nor_written_through(folder, tmp_path, place):
    find_bad_pictures(folder, GOOD)
    (folder / NAME).rename(tmp_path / "mine.jsonl")
    before = (tmp_path / "mine.jsonl").read_bytes()
    place(tmp_path / "mine.jsonl", folder / NAME)
    (folder / "new.png").write_text("this is text")
    assert set(find_bad_pictures(folder, [*GOOD, "new.png"])) == {"new.png"}
    assert (tmp_path / "mine.jsonl").read_bytes() == before


def test_a_link_in_the_locks_place_empties_no_other_file(folder, tmp_path):
    (tmp_path / "mine").write_text("of value")
    (folder / f"{NAME}.lock").symlink_to(tmp_path / "mine")
    assert find_bad_pictures(folder, GOOD) == {}
    assert (tmp_path / "mine").read_text() == "of value"


def test_a_named_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / NAME)
    os.mkfifo(folder / f"{NAME}.lock.owner")
    assert find_bad_pictures(folder, GOOD) == {}


def test_strangers_are_believed_about_their_own_pictures_alone(folder, monkeypatch):
    find_bad_pictures(folder, GOOD)
    status = (folder / "0.png").stat()
    monkeypatch.setattr(checked, "_believed", lambda folder: [])
    kept = KeptChecks(str(folder), DECODER)
    other = os.stat_result([*status[:4], status.st_uid + 1, *status[5:10]],
                           {"st_mtime_ns": status.st_mtime_ns})
    assert kept.reason_of("0.png", status) == ""
    assert kept.reason_of("0.png", other) is None


@pytest.mark.parametrize("damage", [
    b"", b"null\n", b"\xff\x00\n", b"[" * 100_000 + b"\n", b'["0.png", 1, 2, "", 3]\n', b'["0.png'])
def test_damaged_lines_cost_their_pictures_a_second_look_alone(folder, damage):
    find_bad_pictures(folder, GOOD)
    good = (folder / NAME).read_bytes().splitlines(keepends=True)
    (folder / NAME).write_bytes(b"".join(good[:3]) + damage)
    for name in GOOD:
        damage_unseen(folder / name)
    assert set(find_bad_pictures(folder, GOOD)) == set(GOOD[3:])
    assert set(find_bad_pictures(folder, GOOD)) == set(GOOD[3:])
    damage_unseen(folder / "0.png")
    assert len(KeptChecks(str(folder), DECODER)._kept[0].lines) == len(GOOD)


def test_another_version_that_decodes_looks_again(folder, monkeypatch):
    find_bad_pictures(folder, GOOD)
    damage_unseen(folder / "0.png")
    monkeypatch.setattr("blip_art.data.check.DECODER", "another")
    assert set(find_bad_pictures(folder, GOOD)) == {"0.png"}


def test_a_checker_that_is_silent_is_not_waited_for_without_end(folder, capsys):
    with taken(folder / f"{NAME}.lock") as ours:
        assert ours
        assert find_bad_pictures(folder, GOOD, patience_s=0.1) == {}
    assert f"{os.getpid()}, which checks these pictures" in capsys.readouterr().err


@pytest.fixture
def slow(folder):
    """500 large pictures, and a command that checks them for some seconds."""
    Image.effect_noise((2400, 2000), 60).save(folder / "large.jpg", quality=80)
    names = [f"large_{number}.jpg" for number in range(500)]
    for name in names:
        os.link(folder / "large.jpg", folder / name)
    (folder.parent / "list.json").write_text(json.dumps(
        [{"image": name, "caption": "noise", "image_id": name} for name in names]))
    return [sys.executable, "-m", "blip_art.data", "check", str(folder.parent / "list.json"),
            "--images", str(folder), "--workers", "2"]


def children(pid):
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += (task / "children").read_text().split()
    return found


def wait_until(condition):
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_killed_check_loses_no_work_and_leaves_no_process(slow, folder):
    first = subprocess.Popen(slow)
    wait_until(lambda: (folder / NAME).exists() and lines(folder))
    pids = children(first.pid)
    first.send_signal(signal.SIGKILL)
    first.wait()
    done = len(lines(folder))
    assert 0 < done < 500
    assert len(pids) >= 2
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    # Those that were looked at are known, and the others are decoded.
    names = [line[0] for line in lines(folder)]
    damage_unseen(folder / "large_0.jpg")
    assert find_bad_pictures(folder, names) == {}
    assert len(lines(folder)) == done


def test_a_signal_to_all_processes_of_a_step_kills_no_decoder(slow, folder):
    command = [slow[0], "-c", "import signal, sys, runpy\n"
               "signal.signal(signal.SIGUSR1, lambda *ignored: None)  # as captioning does\n"
               "runpy.run_module('blip_art.data', run_name='__main__', alter_sys=True)", *slow[3:]]
    check = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: (folder / NAME).exists() and lines(folder))
    before = children(check.pid)
    for pid in before:
        os.kill(int(pid), signal.SIGUSR1)
    time.sleep(0.5)
    assert children(check.pid) == before
    check.kill()
    check.communicate()


def test_of_checks_started_together_one_decodes(slow, folder):
    names = json.loads((folder.parent / "list.json").read_text())[:50]
    (folder.parent / "list.json").write_text(json.dumps(names))
    checks = [subprocess.Popen(slow, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for check in checks:
        assert "all 50 pictures" in check.communicate(timeout=120)[0]
    assert len(lines(folder)) == 50


def test_a_picture_that_kills_its_process_is_named(folder, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "sys.addaudithook(lambda event, args: os._exit(9) if event in ('open', 'os.open') "
        "and 'deadly' in str(args[0]) else None)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    for name in ("deadly_1.png", "deadly_2.png"):
        (folder / name).write_bytes((folder / "0.png").read_bytes())
    bad = find_bad_pictures(folder, [*GOOD[:3], "deadly_1.png", *GOOD[3:], "deadly_2.png"])
    assert set(bad) == {"deadly_1.png", "deadly_2.png"}
    assert "process that decoded it died" in bad["deadly_1.png"]


@pytest.mark.parametrize(("fault", "why"), [
    ("raise PermissionError(13, 'Permission denied')", "Permission denied"),
    ("raise OSError(116, 'Stale file handle')", "Stale file handle"),
    ("raise MemoryError", "not enough memory to decode it"), ("os._exit(9)", "died")])
def test_a_fault_that_is_not_the_files_is_looked_at_again(folder, tmp_path, monkeypatch, fault,
                                                          why):
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\n"
        "def hook(event, args):\n"
        "    if event in ('open', 'os.open') and str(args[0]).endswith('pictures/3.png'):\n"
        f"        {fault}\n"
        "sys.addaudithook(hook)\n")
    with monkeypatch.context() as patch:
        patch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
        assert why in find_bad_pictures(folder, GOOD).pop("3.png")
    assert len(lines(folder)) == len(GOOD) - 1
    assert find_bad_pictures(folder, GOOD) == {}


def test_signals_of_a_job_step_do_not_end_the_resource_tracker(repo):
    code = ("from multiprocessing import resource_tracker\n"
            "from blip_art.data.workers import start_resource_tracker\n"
            "start_resource_tracker()\n"
            "print(open(f'/proc/{resource_tracker._resource_tracker._pid}/status').read())")
    said = subprocess.run([sys.executable, "-c", code], cwd=repo, capture_output=True, text=True,
                          check=True).stdout
    ignored = int(said.partition("SigIgn:")[2].split()[0], 16)
    assert all(ignored >> (number - 1) & 1 for number in (signal.SIGUSR1, signal.SIGUSR2))
