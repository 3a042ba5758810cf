"""PNG and TIFF files decoded some rows at a time, for pictures too large to decode whole.

    for band in bands(file, Image.open(file)) or (): ...  # whole width, from top to bottom

Pillow decodes whole files only. So each band is handed to it as a small file of the same format,
cut out of the large one without decoding: TIFF's strips and tiles, or PNG's rows after inflating.
The pixels are Pillow's own, as if it had read the whole. (libvips streams these formats too, but
would be a second set of decoders, with other pixels and errors, in every process.)
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from typing import BinaryIO, Iterator, List, NamedTuple, Optional, Tuple

from PIL import Image, TiffImagePlugin

from blip_art.data.rgb import WIDE_MODES, to_rgb

# Of one band, where the file's own pieces are not larger. A pixel takes about 10 bytes on its way.
BAND_PIXELS = 1 << 21
_LARGEST_PIECE = 1 << 24
_BLOCK, _INFLATED = 1 << 16, 1 << 20
_TRUNCATED = "image file is truncated"


def bands(file: BinaryIO, picture: Image.Image) -> Optional[Iterator[Image.Image]]:
    """Bands of an opened PNG or TIFF file, each of its whole width, in order.

    They are RGB, but of the picture's own mode where grey levels have no fixed range (WIDE_MODES),
    and not turned. None: this file can be decoded as a whole only (interlaced, planes apart, …).
    """
    if picture.width > _LARGEST_PIECE:
        return None
    if picture.format == "PNG":
        return _png_bands(file, picture)
    if isinstance(picture, TiffImagePlugin.TiffImageFile):
        return _tiff_bands(file, picture)
    return None


def ready(band: Image.Image) -> Image.Image:
    """RGB, or as it is where only the whole picture tells what white is."""
    return band if band.mode in WIDE_MODES else to_rgb(band)


# ---- TIFF ----

_WIDTH, _LENGTH, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _ROWS_PER_STRIP, _STRIP_SIZES = 273, 278, 279
_SAMPLES, _PLANAR = 277, 284
_TILE_WIDTH, _TILE_LENGTH, _TILE_OFFSETS, _TILE_SIZES = 322, 323, 324, 325
# What decides how the bytes of a strip become pixels: copied into each small file.
_COPIED = (_BITS, _COMPRESSION, _PHOTOMETRIC, 266, _SAMPLES, _PLANAR, 317, 320, 338, 339, 347,
           529, 530, 531, 532)
_NO_COMPRESSION, _YCBCR = 1, 6
# Those whose strips are independent: none, LZW, JPEG, deflate (two numbers), PackBits, zstd.
_COMPRESSIONS = (_NO_COMPRESSION, 5, 7, 8, 32946, 32773, 50000)
_LONG = 4
Tags = TiffImagePlugin.ImageFileDirectory_v2


class _Piece(NamedTuple):
    """A strip or a tile: where its bytes are, and how many rows it has."""

    offset: int
    size: int
    rows: int


def _tiff_bands(file: BinaryIO,
                picture: TiffImagePlugin.TiffImageFile) -> Optional[Iterator[Image.Image]]:
    tags = picture.tag_v2
    if tags.get(_COMPRESSION, 1) not in _COMPRESSIONS or (
            tags.get(_PLANAR, 1) != 1 and tags.get(_SAMPLES, 1) > 1):
        return None
    if _TILE_OFFSETS in tags:
        tiles = _pieces(tags, _TILE_OFFSETS, _TILE_SIZES, tags.get(_TILE_LENGTH, 0))
        return _tile_bands(file, tags, tiles)
    strips = _pieces(tags, _STRIP_OFFSETS, _STRIP_SIZES,
                     min(tags.get(_ROWS_PER_STRIP, tags[_LENGTH]), tags[_LENGTH]))
    return _strip_bands(file, tags, strips)


def _pieces(tags: Tags, offsets: int, sizes: int, rows: int) -> List[_Piece]:
    """The strips or tiles; none where the file does not list both as it should."""
    listed = [tags.get(offsets, ()), tags.get(sizes, ())]
    if not all(isinstance(values, tuple) for values in listed) or len({*map(len, listed)}) != 1:
        return []
    return [_Piece(offset, size, rows) for offset, size in zip(*listed)]


def _strip_bands(file: BinaryIO, tags: Tags,
                 strips: List[_Piece]) -> Optional[Iterator[Image.Image]]:
    width, height = tags[_WIDTH], tags[_LENGTH]
    if not strips or strips[0].rows < 1 or len(strips) != -(-height // strips[0].rows):
        return None
    strips[-1] = strips[-1]._replace(rows=height - strips[0].rows * (len(strips) - 1))
    if strips[0].rows * width <= BAND_PIXELS:
        at_once = max(1, BAND_PIXELS // (strips[0].rows * width))
        groups = [strips[i:i + at_once] for i in range(0, len(strips), at_once)]
    elif tags.get(_COMPRESSION, 1) == _NO_COMPRESSION and tags.get(_PHOTOMETRIC) != _YCBCR:
        row_bytes = (width * _bits_per_pixel(tags) + 7) // 8
        groups = [[piece] for strip in strips for piece in _cut_rows(strip, width, row_bytes)]
    elif strips[0].rows * width <= _LARGEST_PIECE:
        groups = [[strip] for strip in strips]
    else:
        return None
    return (ready(_small_tiff(file, tags, group, width)) for group in groups)


def _bits_per_pixel(tags: Tags) -> int:
    bits, samples = tags.get(_BITS, (1,)), tags.get(_SAMPLES, 1)
    return int(sum(bits) if len(bits) == samples else bits[0] * samples)


def _cut_rows(strip: _Piece, width: int, row_bytes: int) -> Iterator[_Piece]:
    """An uncompressed strip as strips of fewer rows."""
    fewer = max(1, BAND_PIXELS // width)
    for top in range(0, strip.rows, fewer):
        rows = min(fewer, strip.rows - top)
        yield _Piece(strip.offset + top * row_bytes, rows * row_bytes, rows)


def _tile_bands(file: BinaryIO, tags: Tags,
                tiles: List[_Piece]) -> Optional[Iterator[Image.Image]]:
    width, height, tile_width = tags[_WIDTH], tags[_LENGTH], tags.get(_TILE_WIDTH, 0)
    if not tiles or tile_width < 1 or tiles[0].rows < 1 or (
            tiles[0].rows * max(width, tile_width) > _LARGEST_PIECE):
        return None
    across = -(-width // tile_width)
    if len(tiles) != across * -(-height // tiles[0].rows):
        return None
    return (_tile_row(file, tags, tiles[i:i + across], min(tiles[0].rows, height - top))
            for top, i in zip(range(0, height, tiles[0].rows), range(0, len(tiles), across)))


def _tile_row(file: BinaryIO, tags: Tags, tiles: List[_Piece], rows: int) -> Image.Image:
    """Tiles side by side. They are decoded as if they were strips, one below the other."""
    tile_width, tile_height = tags[_TILE_WIDTH], tiles[0].rows
    at_once = max(1, BAND_PIXELS // (tile_width * tile_height))
    band = None
    for first in range(0, len(tiles), at_once):
        some = tiles[first:first + at_once]
        column = ready(_small_tiff(file, tags, some, tile_width))
        band = band or Image.new(column.mode, (tags[_WIDTH], rows))
        for number in range(len(some)):
            top = number * tile_height
            band.paste(column.crop((0, top, tile_width, top + rows)),
                       ((first + number) * tile_width, 0))
    assert band, "a row of tiles has tiles"
    return band


def _small_tiff(file: BinaryIO, tags: Tags, strips: List[_Piece], width: int) -> Image.Image:
    """Some strips as a picture: a TIFF file with no others."""
    if sum(strip.size for strip in strips) > 16 * width * sum(strip.rows for strip in strips) + (
            _BLOCK * len(strips)):
        raise OSError("strips of a TIFF file are larger than their pixels")
    own = TiffImagePlugin.ImageFileDirectory_v2(prefix=tags.prefix)
    for tag in _COPIED:
        if tag in tags:
            own.tagtype[tag] = tags.tagtype[tag]
            own[tag] = tags[tag]
    offsets = itertools.accumulate((strip.size for strip in strips[:-1]), initial=0)
    for tag, value in ((_WIDTH, width), (_LENGTH, sum(strip.rows for strip in strips)),
                       (_ROWS_PER_STRIP, strips[0].rows), (_STRIP_OFFSETS, tuple(offsets)),
                       (_STRIP_SIZES, tuple(strip.size for strip in strips))):
        own.tagtype[tag] = _LONG
        own[tag] = value
    small = io.BytesIO()
    own.save(small)  # Pillow adds where the strips begin to their offsets
    for strip in strips:
        file.seek(strip.offset)
        small.write(_read(file, strip.size))
    picture = Image.open(small, formats=["TIFF"])
    picture.load()
    return picture


def _read(file: BinaryIO, size: int) -> bytes:
    content = file.read(size)
    if len(content) < size:
        raise OSError(_TRUNCATED)
    return content


# ---- PNG ----

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# Pillow's mode to what the file has: bits a sample, bytes a pixel, the name of the bytes' order.
_PNG_MODES = {"L": (8, 1, "L"), "LA": (8, 2, "LA"), "P": (8, 1, "P"), "RGB": (8, 3, "RGB"),
              "RGBA": (8, 4, "RGBA"), "I;16": (16, 2, "I;16B")}
_HEADER = struct.Struct(">IIBBBBB")


def _png_bands(file: BinaryIO, picture: Image.Image) -> Optional[Iterator[Image.Image]]:
    file.seek(len(_SIGNATURE) + 8)
    header = _HEADER.unpack(_read(file, _HEADER.size))
    _, _, depth, _, _, _, interlaced = header
    if interlaced or depth != _PNG_MODES.get(picture.mode, (0,))[0]:
        return None
    return _read_png(file, header, *_PNG_MODES[picture.mode][1:])


def _read_png(file: BinaryIO, header: Tuple[int, ...], pixel_bytes: int,
              order: str) -> Iterator[Image.Image]:
    """Bands from PNG's rows, each of which is coded as a difference to the one above it.

    So a band's small file begins with the last row of the band before, as it was decoded.
    """
    width, height = header[:2]
    file.seek(len(_SIGNATURE))
    palette: List[bytes] = []
    inflated = _inflated(file, palette)
    above, pending = b"", bytearray()
    row_bytes = 1 + width * pixel_bytes
    at_once = max(1, BAND_PIXELS // width)
    for top in range(0, height, at_once):
        rows = min(at_once, height - top)
        while len(pending) < rows * row_bytes:
            block = next(inflated, None)
            if block is None:
                raise OSError(_TRUNCATED)
            pending += block
        content = above + bytes(memoryview(pending)[:rows * row_bytes])
        del pending[:rows * row_bytes]
        band = _small_png(header, palette, content, len(content) // row_bytes)
        above = b"\0" + band.crop((0, band.height - 1, width, band.height)).tobytes("raw", order)
        yield ready(band.crop((0, band.height - rows, width, band.height)) if top else band)


def _small_png(header: Tuple[int, ...], palette: List[bytes], rows: bytes,
               height: int) -> Image.Image:
    head = _HEADER.pack(header[0], height, *header[2:])
    small = io.BytesIO(b"".join([
        _SIGNATURE, _chunk(b"IHDR", head), *palette, _chunk(b"IDAT", zlib.compress(rows, 0)),
        _chunk(b"IEND", b"")]))
    picture = Image.open(small, formats=["PNG"])
    picture.load()
    return picture


def _chunk(kind: bytes, content: bytes) -> bytes:
    return b"".join([struct.pack(">I", len(content)), kind, content,
                     struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))])


def _inflated(file: BinaryIO, palette: List[bytes]) -> Iterator[bytes]:
    """The picture's bytes as they come; `palette` gets the chunks that tell what colours mean."""
    inflate = zlib.decompressobj()
    while True:
        size, kind = struct.unpack(">I4s", _read(file, 8))
        if kind in (b"PLTE", b"tRNS"):
            palette.append(_chunk(kind, _read(file, size)))
            size = 0
        elif kind == b"IDAT":
            while size:
                block = _read(file, min(size, _BLOCK))
                size -= len(block)
                while block:
                    yield inflate.decompress(block, _INFLATED)
                    block = inflate.unconsumed_tail
        elif kind == b"IEND":
            return
        file.seek(size + 4, io.SEEK_CUR)  # the check sum too, as Pillow does
