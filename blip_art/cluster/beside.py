"""A command that runs beside a job and is told when that has ended: scoring beside training.

    with Beside(follow_job(place, run)) as follower: code = run_local(train) or follower.finish()
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from pathlib import Path
from typing import Optional

from blip_art.cluster.jobs import Job, descendants
from blip_art.cluster.local import follow, touch
from blip_art.errors import EXIT_FAILED, EXIT_INTERRUPTED

STOP_S = 10.0
LOOK_S = 1.0
NICEST = "19"


class Beside:
    """Runs the job's command until its input ends: by finish(), or with this process."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._process: Optional[subprocess.Popen[bytes]] = None

    def __enter__(self) -> Beside:
        job, log = self._job, Path(self._job.cwd, self._job.log)
        touch(log)
        with open(log, "ab") as output:
            # A session of its own: Ctrl-C is for the job in front.
            self._process = subprocess.Popen(
                job.argv, cwd=job.cwd, env={**os.environ, **job.env}, stdin=subprocess.PIPE,
                stdout=output, stderr=output, start_new_session=True)
        threading.Thread(target=stay_behind, args=(self._process,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def finish(self) -> int:
        """Tell it that nothing more will come, show what it says until it ends; its exit code."""
        process = self._process
        assert process
        assert process.stdin
        process.stdin.close()
        stops = follow(Path(self._job.cwd, self._job.log), lambda: process.poll() is not None,
                       process.terminate)
        if stops:
            return EXIT_INTERRUPTED
        return process.returncode if process.returncode >= 0 else EXIT_FAILED

    def stop(self) -> None:
        """End it now, if it has not ended; what it wrote is whole."""
        process = self._process
        assert process
        assert process.stdin
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(STOP_S)
        process.kill()
        process.wait()
        process.stdin.close()


def stay_behind(process: subprocess.Popen[bytes]) -> None:
    """Keep a process and all that it starts behind everybody else until it ends.

    Linux shares the CPU among sessions first (autogroup), and `nice` counts only inside one: Java
    in a session of its own would take half of it. Each session's own value is in /proc, where the
    kernel has it.
    """
    while process.poll() is None:
        for pid in (process.pid, *descendants(process.pid)):
            group = Path(f"/proc/{pid}/autogroup")
            with contextlib.suppress(OSError):
                if not group.read_text().endswith(f" nice {NICEST}\n"):
                    group.write_text(NICEST)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LOOK_S)
