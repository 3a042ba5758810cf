"""The program that runs images: Apptainer or SingularityCE, which version, what it can read.

    name, version = program_version("apptainer"); packed_with("blip_art.sif")
"""

from __future__ import annotations

import re
import shutil
import struct
from pathlib import Path
from typing import NamedTuple, Optional, Tuple

from blip_art.cluster.slurm import run_command

Version = Tuple[int, ...]
APPTAINER, SINGULARITY = "apptainer", "singularity"
# Against gzip: packed in a third of the time, read in a quarter, no larger (measured).
FAST = "-comp zstd -Xcompression-level 3"
_COMPRESSIONS = ("", "gzip", "lzma", "lzo", "xz", "lz4", "zstd")
_PARTITION = 0x4004


class Program(NamedTuple):
    """'apptainer version 1.4.5' is ("apptainer", (1, 4, 5))."""

    name: str
    version: Version


def program_version(container: str) -> Program:
    """What a container program says of itself; where it is not installed, what its name says.

    Apptainer also goes by the name singularity.
    """
    said = run_command([container, "--version"]).out if shutil.which(container) else ""
    return read_version(said) or Program(
        SINGULARITY if SINGULARITY in Path(container).name else APPTAINER, ())


def read_version(said: str) -> Optional[Program]:
    """'singularity-ce version 3.11.4-jammy' as name and numbers; None for another program."""
    match = re.search(r"(apptainer|singularity)\S* version v?(\d+(?:\.\d+)+)", said)
    if not match:
        return None
    return Program(match[1], tuple(int(part) for part in match[2].split(".")))


def squashfs_options(container: str) -> str:
    """How mksquashfs shall pack what this program is to read.

    SingularityCE knows no zstd (seen with 4.5.1: "unknown compression algorithm value 6").
    """
    return FAST if program_version(container).name == APPTAINER else "-comp gzip"


def packed_with(path: str) -> str:
    """Compression of a squashfs file, or of the one in a SIF file; '' if there is none.

    Layouts: SIF's Go module (descriptors of 585 bytes), the kernel's squashfs_fs.h.
    """
    with open(path, "rb") as file:
        head, start = file.read(128), 0
        if head[32:41] == b"SIF_MAGIC":
            table, length = struct.unpack_from("<QQ", head, 96)
            file.seek(table)
            descriptors = file.read(length)
            start = next((struct.unpack_from("<q", descriptors, at + 17)[0]
                          for at in range(0, len(descriptors) - 585, 585)
                          if struct.unpack_from("<i", descriptors, at)[0] == _PARTITION), 0)
        file.seek(start)
        head = file.read(22)
    number = struct.unpack_from("<H", head, 20)[0] if head[:4] == b"hsqs" else 0
    return _COMPRESSIONS[number] if number < len(_COMPRESSIONS) else ""
