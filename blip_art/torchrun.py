"""torchrun whose exit code and last words are those of the rank that failed first.

    python -m blip_art.torchrun --standalone --nproc_per_node=4 -m blip_art.train CONFIG --run RUN

Takes torchrun's own options. torchrun alone turns every failure into exit code 1 and a page of
traceback, below which a rank's one-line message is hard to find.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import socket
import sys
from typing import Iterator, List, Tuple

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from blip_art.errors import EXIT_INTERRUPTED
from blip_art.failure import STOP_SIGNALS, run_note, write_killed


def main(argv: List[str]) -> int:
    """Run the ranks to their end and return the exit code of the first one that failed."""
    # Silences this process only: it announces each step of a shutdown, the ranks say what matters.
    logging.disable(logging.ERROR)
    parser = run.get_args_parser()
    # Or Python 3.11 takes the ranks' own --run for an abbreviation of torchrun's --run-path.
    parser.allow_abbrev = False
    args = parser.parse_args(argv)
    with run_note([args.training_script, *args.training_script_args]) as note, \
            static_rendezvous(args):
        try:
            run.run(args)
        except SignalException:
            return EXIT_INTERRUPTED
        except ChildFailedError as error:
            rank, code = first_failure(error)
            if code >= 0:
                return code
            print(f"error: {write_killed(note, rank, -code)}", file=sys.stderr)
            return 128 - code
    return 0


@contextlib.contextmanager
def static_rendezvous(args: argparse.Namespace) -> Iterator[None]:
    """Let --standalone mean a free port and no more.

    torch's own --standalone keeps a pickle in a store that everybody who reaches the port may list
    and write, and unpickles what it finds there every few seconds.
    """
    with socket.socket() as held:
        if args.standalone:
            # Bound, but not listening: the store can take the port, and the system gives it to
            # nobody else meanwhile.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.bind(("", 0))
            args.standalone, args.rdzv_backend, args.rdzv_endpoint = False, "static", ""
            args.master_addr, args.master_port = "localhost", held.getsockname()[1]
        yield


def first_failure(error: ChildFailedError) -> Tuple[int, int]:
    """(rank, exit code) of the rank that the others ended for.

    The times of failures are whole seconds. But a rank that was killed is the cause of errors in
    others, and what torchrun has asked to end had an error of another for its cause.
    """
    def place(item: Tuple[int, ProcessFailure]) -> Tuple[int, int, int]:
        rank, failure = item
        asked = -failure.exitcode in STOP_SIGNALS
        return 2 if asked else int(failure.exitcode >= 0), failure.timestamp, rank
    rank, failure = min(error.failures.items(), key=place)
    return rank, failure.exitcode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
