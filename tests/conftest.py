"""Fixtures that several test files share."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, nohup has them ignore
# SIGHUP, and what they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

REPO = Path(__file__).resolve().parent.parent


def pytest_unconfigure() -> None:
    """A failed test's frames keep its loader, whose workers ignore SIGTERM: at exit multiprocessing
    would wait for them without a limit, and a failure become a time-out."""
    for child in multiprocessing.active_children():
        child.kill()


@pytest.fixture(scope="session", autouse=True)
def parses_of_these_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Java said to the user's own runs decides no test, and tests leave nothing there."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("parses")
        patch.setitem(os.environ, "BLIP_ART_PARSES", str(folder / "parses.sqlite"))
        yield


@pytest.fixture(scope="session")
def repo() -> Path:
    """The checkout under test."""
    return REPO
