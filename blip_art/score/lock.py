"""One scorer at a time in a run folder, on whatever file system, and no lock that outlives it.

    with taken(run.scoring_lock) as ours: ...      # False: somebody else has it

A lock saves work; nothing breaks without it, because score files are written whole and two
scorers write the same.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
import time
from pathlib import Path
from typing import IO, Any, Callable, Dict, Iterator, Optional

from blip_art.errors import UserError

# Lustre without -o flock, some NFS servers and FUSE.
NO_FLOCK = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
TOUCH_S = 20.0
STALE_S = 180.0

Flock = Callable[[IO[str], int], None]


@contextlib.contextmanager
def taken(path: Path, flock: Flock = fcntl.flock) -> Iterator[bool]:
    """Try to take the lock; yields whether it is ours. The system ends it with the process.

    Where the file system has no such locks, a file with host and process id stands for it: it is
    void when that process is gone (same host), or when nobody has touched it for three minutes:
    another process may have got the number of one that is gone.

    Raises:
        UserError: the folder cannot be written to.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = open(path, "a+", encoding="utf-8",  # noqa: SIM115 (closed below, which unlocks)
                    opener=_no_link)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; make {path.parent} a "
                        "folder that you can write to") from error
    with file:
        try:
            flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        except OSError as error:
            if error.errno not in NO_FLOCK:
                raise
            with _owner_file(path.with_name(path.name + ".owner")) as ours:
                yield ours
            return
        _write_owner(file)
        yield True


def is_held(path: Path, flock: Flock = fcntl.flock) -> Optional[bool]:
    """Whether a process has the lock; None where that cannot be told from this host.

    Looking takes a shared lock for a moment, so that `taken` may fail then; it is tried again.
    """
    owner_file = path.with_name(path.name + ".owner")
    try:
        if owner_file.exists():
            return not _is_void(owner_file)
        with open(path, encoding="utf-8", opener=_no_link) as file:
            flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError as error:
        # Without locks the file of the owner stands for one, and there is none.
        return False if error.errno in NO_FLOCK else None
    # Some file systems keep locks on the host that has them.
    return False if owner(path).rpartition(":")[0] == os.uname().nodename else None


def owner(path: Path) -> str:
    """Who has or had the lock, as host:pid; '' if it is not known."""
    for name in (path.with_name(path.name + ".owner"), path):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            said = json.loads(_text(name))
            return f"{said['host']}:{said['pid']}"
    return ""


@contextlib.contextmanager
def _owner_file(path: Path) -> Iterator[bool]:
    if _is_void(path):
        _clear_away(path)
    try:
        with open(path, "x", encoding="utf-8") as file:
            _write_owner(file)
    except FileExistsError:
        yield False
        return
    done = threading.Event()
    toucher = threading.Thread(target=_keep_fresh, args=(path, done), daemon=True)
    toucher.start()
    try:
        yield True
    finally:
        done.set()
        toucher.join()
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


def _clear_away(path: Path) -> None:
    """Remove a void file; one that another process has put there meanwhile is put back."""
    aside = path.with_name(f"{path.name}.{os.uname().nodename}-{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if not _is_void(aside):
            with contextlib.suppress(FileExistsError):
                os.link(aside, path)
        aside.unlink()


def _is_void(path: Path) -> bool:
    """Whether the process that wrote the file is gone, for all that can be known."""
    try:
        age_s = time.time() - path.stat().st_mtime
        said: Dict[str, Any] = json.loads(_text(path))
        if said["host"] == os.uname().nodename and not Path(f"/proc/{int(said['pid'])}").exists():
            return True
    except FileNotFoundError:
        return False
    except (ValueError, KeyError, TypeError):
        pass  # written this moment, or cut off by a full disk: its age tells
    return age_s > STALE_S


def _keep_fresh(path: Path, done: threading.Event) -> None:
    while not done.wait(TOUCH_S):
        with contextlib.suppress(OSError):
            os.utime(path)


def _no_link(path: str, flags: int) -> int:
    """For `open`: a link that somebody put there must not have another file emptied, nor a named
    pipe be waited for."""
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)


def _text(path: Path) -> str:
    with open(path, encoding="utf-8", opener=_no_link) as file:
        return file.read()


def _write_owner(file: IO[str]) -> None:
    file.truncate(0)
    json.dump({"host": os.uname().nodename, "pid": os.getpid()}, file)
    file.flush()
