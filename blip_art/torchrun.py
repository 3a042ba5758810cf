"""torchrun whose exit code and last words are those of the rank that failed first.

    python -m blip_art.torchrun --standalone --nproc_per_node=4 -m blip_art.train CONFIG --run RUN

Takes torchrun's own options. torchrun alone turns every failure into exit code 1 and a page of
traceback, below which a rank's one-line message is hard to find.
"""

from __future__ import annotations

import logging
import signal
import sys
from typing import List

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from blip_art.errors import EXIT_INTERRUPTED


def main(argv: List[str]) -> int:
    """Run the ranks to their end and return the exit code of the first one that failed."""
    # Silences this process only: it announces each step of a shutdown, the ranks say what matters.
    logging.disable(logging.ERROR)
    parser = run.get_args_parser()
    # Or Python 3.11 takes the ranks' own --run for an abbreviation of torchrun's --run-path.
    parser.allow_abbrev = False
    args = parser.parse_args(argv)
    try:
        run.run(args)
    except SignalException:
        return EXIT_INTERRUPTED
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode >= 0:
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        hint = " (often: not enough memory)" if name == "SIGKILL" else ""
        print(f"error: rank {rank} was ended by {name}{hint}", file=sys.stderr)
        return 128 - failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
