"""The exception for mistakes a user can mend, and the one place where commands end.

    if __name__ == "__main__":
        exit_cleanly(main)
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
import time
from typing import Callable, NoReturn, Optional

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
# Under torchrun every rank meets the same mistake. Rank 0 says it, and its end ends the others;
# one that is still there after this long met it alone.
# C0 and C1, and what turns the direction of writing.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_PATIENCE_S = 15.0
# What a write to standard output ends in when its disk is full, or it is closed.
_CANNOT_PRINT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)


def printable(line: str) -> str:
    """What a terminal shows and does not obey: control characters are escaped."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


class UserError(Exception):
    """What is wrong, where, and how to mend it, in one line."""

    def __str__(self) -> str:
        # A loader worker's error arrives with the worker's traceback in front of its message.
        line = super().__str__().rstrip().split("\n")[-1]
        return printable(line.replace(f"{__name__}.UserError: ", ""))


def exit_cleanly(main: Callable[[], Optional[int]]) -> NoReturn:
    """Run `main` and leave with its exit code; a user's mistake ends without a traceback."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Captions have characters that not every locale has.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Python has none where ours is closed; print would say nothing and not fail.
    unprinted = io.StringIO()
    sys.stdout = sys.stdout or unprinted
    try:
        code = main() or 0
        sys.stdout.flush()
        if unprinted.getvalue():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    except UserError as error:
        rank = os.environ.get("RANK", "0")
        if rank != "0":
            time.sleep(_PATIENCE_S)
        print(f"error: {f'rank {rank}: ' if rank != '0' else ''}{error}", file=sys.stderr)
        code = EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("interrupted; what is on disk is whole, run the same command again to go on",
              file=sys.stderr)
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has left.
        _drop_output()
        code = 0
    except OSError as error:
        if error.errno not in _CANNOT_PRINT or error.filename is not None:
            raise
        _drop_output()
        print(f"error: cannot print the results: {error.strerror}", file=sys.stderr)
        code = EXIT_FAILED
    sys.exit(code)


def _drop_output() -> None:
    """Else the interpreter's own flush at exit would print a second error."""
    with contextlib.suppress(io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
