"""Reads the names in the root folder of an ext2, ext3 or ext4 image, without mounting it.

    with open("overlay.img", "rb") as file: "upper" in root_entries(file)
"""

from __future__ import annotations

import struct
from typing import BinaryIO, List

_ROOT_INODE = 2
_EXTENTS = 0x80000
_DIRECT_BLOCKS = 12


def root_entries(file: BinaryIO) -> List[str]:
    """Names in the root folder; a small folder, as an overlay's is, lies in direct blocks."""
    superblock = _read(file, 1024, 1024)
    block_bytes = 1024 << struct.unpack_from("<I", superblock, 24)[0]
    inode_bytes = struct.unpack_from("<H", superblock, 88)[0]
    # The group descriptors follow the superblock's block; the first holds inode 2.
    descriptor = _read(file, block_bytes * (2 if block_bytes == 1024 else 1), 32)
    table_block = struct.unpack_from("<I", descriptor, 8)[0]
    inode = _read(file, table_block * block_bytes + (_ROOT_INODE - 1) * inode_bytes, 128)
    return [name for block in _blocks(inode)
            for name in _names(_read(file, block * block_bytes, block_bytes))]


def _read(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count).ljust(count, b"\0")


def _blocks(inode: bytes) -> List[int]:
    if not struct.unpack_from("<I", inode, 32)[0] & _EXTENTS:
        return [block for block in struct.unpack_from(f"<{_DIRECT_BLOCKS}I", inode, 40) if block]
    # ext4: a header of 12 bytes, then extents of 12: logical block, length, high and low start.
    entries = min(4, struct.unpack_from("<H", inode, 42)[0])
    extents = (struct.unpack_from("<IHHI", inode, 52 + 12 * number) for number in range(entries))
    return [low + (high << 32) + offset for _, length, high, low in extents
            for offset in range(min(length, _DIRECT_BLOCKS))]


def _names(block: bytes) -> List[str]:
    found, position = [], 0
    while position + 8 <= len(block):
        inode, length, name_bytes = struct.unpack_from("<IHB", block, position)
        if length < 8:
            break
        if inode:
            name = block[position + 8:position + 8 + name_bytes]
            found.append(name.decode("utf-8", "replace"))
        position += length
    return found
