"""Folders whose content is run, in places where other users of the machine can make folders, too.

    if not own_folder(Path(tempfile.gettempdir(), "name that others can guess")): ...
"""

from __future__ import annotations

import contextlib
import os
import stat
from pathlib import Path


def own_folder(path: Path) -> bool:
    """Make the folder unless it is there, and take from others the right to write into it.

    Returns:
        False where that is not possible: it is another user's, a link or no folder.
    """
    with contextlib.suppress(OSError):
        path.mkdir(mode=0o700, exist_ok=True)
        status = path.lstat()
        if status.st_uid == os.geteuid() and stat.S_ISDIR(status.st_mode):
            path.chmod(status.st_mode & 0o755)
            return True
    return False
