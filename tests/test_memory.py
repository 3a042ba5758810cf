"""Memory that is kept."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

FAULTS = """
import resource
from blip_art.memory import keep_freed_memory
keep_freed_memory()
def faults():
    bytearray(2**27)  # cleared, page by page
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
before = faults()
print(sum(faults() - before for _ in range(4)))
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_pages_of_freed_memory_are_not_asked_for_again(repo):
    out = subprocess.check_output([sys.executable, "-c", FAULTS], cwd=repo, text=True)
    assert int(out) < 2**27 / 2**21  # huge pages of one time, were they asked for again
