"""The Iconclass test set as it is handed out: a zip, its unpacked folder, or data.json alone.

    archive = open_archive("779ba2ca9e977c58d818e3823a676973.zip", images="Dataset")
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Optional

from blip_art.data.progress import progress
from blip_art.errors import UserError
from blip_art.files import PathLike, written_aside

try:
    from lzma import LZMAError
except ImportError:  # a Python built without it, whose zipfile cannot read it either
    LZMAError = zipfile.BadZipFile  # type: ignore[misc,assignment]

ARCHIVE_MD5 = "779ba2ca9e977c58d818e3823a676973"
PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".gif", ".bmp")
_CHUNK = 1 << 22
_DATA_LIMIT = 1 << 30
_ENCRYPTED = 1  # a bit of a zip member's flags
# What zipfile and its decompressors raise on damaged or hostile files.
_DAMAGED = (zipfile.BadZipFile, zlib.error, LZMAError, EOFError, struct.error, ValueError,
            OverflowError, RuntimeError)


class Archive(NamedTuple):
    """What the annotations are made from."""

    notations: Dict[str, List[str]]
    images: Optional[Path]
    data_sha256: str


def open_archive(path: PathLike, images: PathLike = "Dataset", md5: str = ARCHIVE_MD5,
                 pictures: bool = True) -> Archive:
    """Read `data.json`; a zip's pictures are unpacked into `images`/data unless not wanted.

    Args:
        path: the zip, its unpacked folder, or a data.json.
        images: where a zip is unpacked; files that are there and whole are kept.
        md5: what the zip's MD5 must be; 'none' takes any zip.
        pictures: False reads data.json only.

    Raises:
        UserError: absent, half or another archive, no data.json in it, or not of its format.
    """
    path = Path(path)
    with _told_in_one_line(path):
        if os.path.isdir(path):
            data = _data_in_folder(path)
            return _parse(data.read_bytes(), str(data), _picture_folder(data, pictures))
        if not os.path.isfile(path):
            raise UserError(f"no archive at {path}; give the zip, its unpacked folder or data.json")
        if path.suffix.lower() == ".json":
            return _parse(path.read_bytes(), str(path), _picture_folder(path, pictures))
        return _open_zip(path, Path(images), md5, pictures)


@contextlib.contextmanager
def _told_in_one_line(path: Path) -> Iterator[None]:
    """What an unreadable file, or zipfile on a hostile one, raises as a UserError."""
    try:
        yield
    except NotImplementedError as error:
        raise UserError(f"{path} is compressed in a way that Python cannot read ({error}); unpack "
                        "it with another program and give the folder") from error
    except _DAMAGED as error:
        raise UserError(f"{path} is damaged ({error}); fetch it again") from error
    except OSError as error:
        if error.errno is None:  # bz2
            raise UserError(f"{path} is damaged ({error}); fetch it again") from error
        raise UserError(f"cannot read {error.filename or path}: {error.strerror}; "
                        "check its permissions, or fetch it again") from error


def _data_in_folder(folder: Path) -> Path:
    places = [folder / "data.json", *sorted(folder.glob("*/data.json"))]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise UserError(f"no data.json in {folder} or one folder below; "
                        "give the folder that the archive was unpacked to")
    return found


def _picture_folder(data: Path, pictures: bool) -> Optional[Path]:
    """Where the pictures lie beside data.json: with it, or in a folder `data`."""
    for folder in (data.parent, data.parent / "data") if pictures else ():
        if folder.is_dir() and any(name.lower().endswith(PICTURE_SUFFIXES)
                                   for name in os.listdir(folder)):
            return folder
    return None


def _parse(content: bytes, where: str, images: Optional[Path]) -> Archive:
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not whole JSON ({error}); fetch it again") from error
    if not isinstance(records, dict) or not records:
        raise UserError(f"{where} must map file names to lists of notations")
    for name, notations in records.items():
        if not isinstance(notations, list) or not all(isinstance(n, str) for n in notations):
            raise UserError(f"{where}: '{name}' must have a list of notations, "
                            f"not {str(notations)[:60]}")
    return Archive(records, images, hashlib.sha256(content).hexdigest())


def _open_zip(path: Path, images: Path, md5: str, pictures: bool) -> Archive:
    if not zipfile.is_zipfile(path):
        raise UserError(f"{path} ({path.stat().st_size:,} bytes) is no whole zip file, as after "
                        "a download that stopped; fetch it again")
    if md5 != "none":
        _check_md5(path, md5)
    with zipfile.ZipFile(path) as archive:
        members = [m for m in archive.infolist() if not m.is_dir()]
        data = next((m for m in members if os.path.basename(m.filename) == "data.json"), None)
        if data is None:
            raise UserError(f"no data.json in {path}: not the Iconclass test set")
        if any(member.flag_bits & _ENCRYPTED for member in members):
            raise UserError(f"{path} is encrypted; unpack it with its password and give the folder")
        if data.file_size > _DATA_LIMIT:
            raise UserError(f"{path}:{data.filename} claims {data.file_size:,} bytes; fetch it "
                            "again, or give the folder that it was unpacked to")
        found = _parse(archive.read(data), f"{path}:{data.filename}",
                       images / "data" if pictures else None)
        if pictures:
            _unpack(archive, members, images / "data")
    return found


def _check_md5(path: Path, expected: str) -> None:
    digest = hashlib.md5()
    size = path.stat().st_size
    with open(path, "rb") as file:
        chunks = iter(lambda: file.read(_CHUNK), b"")
        for chunk in progress(chunks, f"checking {path.name}", "blocks", -(-size // _CHUNK)):
            digest.update(chunk)
    if digest.hexdigest() != expected:
        raise UserError(f"{path} has MD5 {digest.hexdigest()}, the archive has {expected}; "
                        "fetch it again, or give --md5 none if it is another one on purpose")


def _unpack(archive: zipfile.ZipFile, members: List[zipfile.ZipInfo], folder: Path) -> None:
    """Write the pictures that are not there yet, each whole; names lose their folders."""
    pictures: Dict[str, zipfile.ZipInfo] = {}
    for member in members:
        name = os.path.basename(member.filename)
        if name.lower().endswith(PICTURE_SUFFIXES):
            other = pictures.setdefault(name, member)
            if other is not member:
                raise UserError(f"{archive.filename} holds both {other.filename} and "
                                f"{member.filename}, which would become the same file; unpack it "
                                "yourself and give the folder")
    lacking = {name: member for name, member in pictures.items()
               if _size(folder / name) != member.file_size}
    _check_space(folder, sum(member.file_size for member in lacking.values()))
    for name in progress(lacking, f"unpacking to {folder}", "pictures"):
        with written_aside(folder / name) as aside:
            _extract(archive, lacking[name], aside)


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path) -> None:
    with archive.open(member) as packed, open(target, "wb") as file:
        try:
            shutil.copyfileobj(packed, file, _CHUNK)
        except OSError as error:
            if error.errno is None:  # bz2's way to say that
                raise zipfile.BadZipFile(f"{member.filename}: {error}") from error
            raise
        if file.tell() != member.file_size:
            raise zipfile.BadZipFile(f"{member.filename} has {file.tell():,} bytes instead of "
                                     f"{member.file_size:,}")


def _check_space(folder: Path, needed: int) -> None:
    """Refuse before the first picture what the disk cannot hold, a zip bomb as well."""
    there = next(place for place in (folder, *folder.resolve().parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise UserError(f"the pictures need {needed / 1e9:,.1f} GB and {folder} has "
                        f"{free / 1e9:,.1f} GB free; choose another folder with --images")


def _size(path: Path) -> Optional[int]:
    try:
        return path.stat().st_size
    except (OSError, ValueError):
        return None
