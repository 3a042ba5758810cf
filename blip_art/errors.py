"""The exception for mistakes a user can fix, and the one place where commands end.

    if __name__ == "__main__":
        exit_cleanly(main)
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import re
import select
import signal
import stat
import sys
import threading
import time
import traceback
from typing import Any, Callable, NoReturn, Optional

EXIT_FAILED = 1
EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 130
# What a shell says of a program that wrote into a pipe nobody reads any more.
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE
# Before the ranks are connected every rank meets the same mistake. Rank 0 prints it, and its end
# ends the others; one that is still there after this long met it alone.
_PATIENCE_S = 15.0
# What has failed does not wait longer than this for threads and functions that run at exit.
_EXIT_LIMIT_S = 5.0
# What a write to standard output ends in when its disk is full, or it is closed.
_CANNOT_PRINT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
# A folder without permission to search it, a name of 300 letters: met wherever a path is looked at
# first.
_USERS_ERRNOS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG, errno.ELOOP)
# C0 and C1, and what turns the direction of writing.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(line: str) -> str:
    """What a terminal shows and does not obey: control characters are escaped."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


class UserError(Exception):
    """What is wrong, where, and how to fix it, in one line."""

    is_first = False
    """Whether the ranks have agreed that this is the first error of all, so the one to print."""

    def __str__(self) -> str:
        # A loader worker's error arrives with the worker's traceback in front of its message.
        line = super().__str__().rstrip().split("\n")[-1]
        return printable(line.replace(f"{__name__}.UserError: ", ""))


class AnotherRankFailed(Exception):
    """In place of an error that another rank's failure has caused: that rank prints the reason."""

    def __init__(self, code: int) -> None:
        super().__init__(f"another rank has failed with exit code {code}")
        self.code = code


def error_line(error: BaseException) -> str:
    """What an error says, in one line; the kind of error too, unless it was written for users."""
    if isinstance(error, UserError):
        return str(error)
    return printable(f"{type(error).__name__}: {' '.join(str(error).split())}")


def quoted(value: Any, longest: int = 80) -> str:
    """A value as one short line, for a message."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest - 1]}…"


def exit_cleanly(main: Callable[[], Optional[int]]) -> NoReturn:
    """Run `main` and leave with its exit code; a user's mistake ends without a traceback.

    The last line that is printed names the error. A command that fails ends within seconds,
    whatever its threads and its loader processes do.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Captions have characters that not every locale has.
        sys.stdout.reconfigure(errors="backslashreplace")
    # Python has none where ours is closed; print would say nothing and not fail.
    unprinted = io.StringIO()
    sys.stdout = sys.stdout or unprinted
    try:
        code = main() or 0
        if unprinted.getvalue():
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    except SystemExit:  # argparse has printed what is wrong
        raise
    except BaseException as error:
        code = _report(error)
    code = code or _flush_output()
    if code:
        end_now(code)
    sys.exit(0)


def _report(error: BaseException) -> int:
    """Print what has ended a command; returns its exit code."""
    if isinstance(error, AnotherRankFailed):
        return error.code
    if isinstance(error, KeyboardInterrupt):
        _print_error("interrupted; what is on disk is whole, run the same command again to go on")
        return EXIT_INTERRUPTED
    if isinstance(error, BrokenPipeError) and not is_output_read():
        _discard_output()  # the reader (head, less) has left
        return EXIT_BROKEN_PIPE
    if isinstance(error, OSError) and error.errno in _CANNOT_PRINT and _is_of_output(error):
        return _report_unprinted(error)
    if isinstance(error, OSError) and error.errno in _USERS_ERRNOS and error.filename:
        _print_error(printable(f"error: cannot use {error.filename}: {error.strerror}"))
        return EXIT_USER_ERROR
    rank = os.environ.get("RANK", "0")
    if isinstance(error, UserError):
        if rank != "0" and not error.is_first:
            time.sleep(_PATIENCE_S)
    else:
        with contextlib.suppress(OSError):
            traceback.print_exception(type(error), error, error.__traceback__)
    _print_error(f"error: {f'rank {rank}: ' if rank != '0' else ''}{error_line(error)}")
    return EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_FAILED


def _is_of_output(error: OSError) -> bool:
    """Whether standard output, rather than a file, could not be written: it then still cannot."""
    if error.filename is not None:
        return False
    if not isinstance(sys.stdout, io.TextIOWrapper):
        return True
    if sys.stdout.write_through:  # it keeps nothing that a flush would try again
        return not stat.S_ISFIFO(os.fstat(sys.stdout.fileno()).st_mode)  # a pipe has no disk
    try:
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _print_error(line: str) -> None:
    with contextlib.suppress(OSError):  # the log's reader may have left, its disk may be full
        print(line, file=sys.stderr, flush=True)


def _flush_output() -> int:
    """Write what standard output still holds; the exit code if that fails, else 0."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()  # all was done, somebody wanted only the beginning of it
    except OSError as error:
        return _report_unprinted(error)
    return 0


def _report_unprinted(error: OSError) -> int:
    _discard_output()
    _print_error(f"error: cannot print the results: {error.strerror}; free space or print them "
                 "elsewhere")
    return EXIT_FAILED


def is_output_read() -> bool:
    """Whether standard output is something other than a pipe that its reader has closed."""
    poll = select.poll()
    poll.register(sys.__stdout__.fileno() if sys.__stdout__ else 1, 0)
    return not any(events & select.POLLERR for _, events in poll.poll(0))


def _discard_output() -> None:
    """Point standard output away, or the interpreter's own flush prints a second error."""
    with contextlib.suppress(io.UnsupportedOperation):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def end_now(code: int) -> NoReturn:
    """End this process within seconds: loader processes are killed, threads are not waited for.

    multiprocessing would ask its children to end and then wait for them without a limit.
    """
    bound = threading.Timer(_EXIT_LIMIT_S, os._exit, (code,))
    bound.daemon = True
    bound.start()
    if "multiprocessing" in sys.modules:
        for child in sys.modules["multiprocessing"].active_children():
            child.kill()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    atexit._run_exitfuncs()  # temporary folders and semaphores are removed there
    os._exit(code)
