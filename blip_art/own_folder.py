"""Folders whose content is run, in places where other users of the machine can make folders, too.

    if not own_folder(Path(tempfile.gettempdir(), "name that others can guess")): ...

singularity/scratch.sh does the same for the scratch of jobs.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from pathlib import Path


def own_folder(path: Path) -> bool:
    """Make the folder unless it is there, for this user alone to write into.

    Returns:
        False where that is not possible: it is another user's, a link or no folder, others can
        write into it, who may have put anything there, or can put a folder of theirs in its place.
    """
    with contextlib.suppress(OSError):
        if not _is_safe_place(path.parent):
            return False
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if (status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode)
                and not _is_open(status)):
            path.chmod(status.st_mode & 0o755)  # a group of one now may have others later
            return True
    return False


def _is_safe_place(folder: Path) -> bool:
    """Whether no other user can put something of theirs in the place of what lies there."""
    for path in (Path(os.path.abspath(folder)), folder.resolve()):  # as named, and behind links
        for place in (path, *path.parents):
            here, above = place.stat(), place.parent.stat()
            # In an open folder the first one to use a name has it; where that folder is not
            # sticky, everybody can also rename what lies in it.
            if _is_open(here) and not here.st_mode & stat.S_ISVTX:
                return False
            if _is_open(above) and place.lstat().st_uid not in (0, os.geteuid()):
                return False
    return True


def _is_open(status: os.stat_result) -> bool:
    """Whether others can write into the folder: by the group that it is of, too."""
    return bool(status.st_mode & stat.S_IWOTH
                or status.st_mode & stat.S_IWGRP and not _is_private_group(status.st_gid))


def _is_private_group(number: int) -> bool:
    """Whether it is the group that this user or root has alone: many systems make one for each."""
    for user in {0, os.geteuid()}:
        with contextlib.suppress(KeyError):  # not in the system's lists
            account, group = pwd.getpwuid(user), grp.getgrgid(number)
            if (account.pw_gid, account.pw_name) == (number, group.gr_name):
                return set(group.gr_mem) <= {account.pw_name}
    return False
