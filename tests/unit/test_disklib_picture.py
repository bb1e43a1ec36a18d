"""The picture of a map: every cell shows the share of the disk that it stands for."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from collections.abc import Iterator

import pytest

from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.memory import MemoryStore
from vdkit.disklib.diskmap import Layer
from vdkit.disklib.picture import ABSENT, PALETTE, ZERO, Picture, draw_map, link_colours, write_png
from vdkit.errors import UsageError

MIB = 1 << 20
DATA, NONE = ExtentKind.DATA, ExtentKind.ZERO


def layers(*runs: tuple[int, int, int | None, bool]) -> list[Layer]:
    """``(offset, length, depth of data or None for zero, present)``"""
    return [
        Layer(Extent(offset, length, NONE if depth is None else DATA), depth or 0, present)
        for offset, length, depth, present in runs
    ]


def colour(picture: Picture, cell: int) -> tuple[int, int, int]:
    """Of a cell's first pixel, as the documents describe the layout."""
    pixels = (picture.width - 84) // picture.columns
    row, column = divmod(cell, picture.columns)
    line = picture.rows[30 + row * pixels]
    x = (72 + column * pixels) * 3
    red, green, blue = line[x : x + 3]
    return red, green, blue


def decoded(data: bytes) -> tuple[int, int, list[bytes]]:
    """A PNG of 8-bit RGB, by its published layout and without the library that wrote it."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    position, packed, width, height = 8, b"", 0, 0
    while position < len(data):
        length, kind = struct.unpack_from(">I4s", data, position)
        body = data[position + 8 : position + 8 + length]
        (crc,) = struct.unpack_from(">I", data, position + 8 + length)
        assert crc == zlib.crc32(kind + body)
        if kind == b"IHDR":
            width, height, depth, colours = struct.unpack_from(">IIBB", body)
            assert (depth, colours) == (8, 2)
        elif kind == b"IDAT":
            packed += body
        position += 12 + length
    plain = zlib.decompress(packed)
    stride = width * 3 + 1
    rows = [plain[at : at + stride] for at in range(0, len(plain), stride)]
    assert {row[0] for row in rows} == {0}, "no filter is used"
    return width, height, [row[1:] for row in rows]


def test_cells() -> None:
    # 8 MiB at 128 columns of at most 64 rows: cells of 1 KiB.
    picture = draw_map(
        layers(
            (0, 1024, 0, True),
            (1024, 1024, 1, True),
            (2048, 1024, None, True),
            (3072, 1024, None, False),
            (4096, 512, 0, True),
            (4608, 8 * MIB - 4608, None, False),
        ),
        8 * MIB,
        links=2,
    )
    assert (picture.cell, picture.columns) == (1024, 128)
    assert [colour(picture, cell) for cell in range(4)] == [PALETTE[0], PALETTE[1], ZERO, ABSENT]
    half = colour(picture, 4)
    assert all(min(a, b) <= c <= max(a, b) for a, b, c in zip(ABSENT, PALETTE[0], half, strict=True))
    assert half not in (ABSENT, PALETTE[0])
    assert (picture.data, picture.zero, picture.absent) == ((1536, 1024), 1024, 8 * MIB - 3584)


def test_a_single_sector_of_a_huge_disk_is_seen() -> None:
    picture = draw_map(layers((5 << 40, 512, 0, True)), 62 << 40)
    cell = (5 << 40) // picture.cell
    assert colour(picture, cell) != ABSENT
    assert colour(picture, cell + 1) == ABSENT


def test_a_run_over_many_cells_and_parts_of_two() -> None:
    picture = draw_map(layers((1500, 4000, 0, True)), 8 * MIB)
    solid = [cell for cell in range(8) if colour(picture, cell) == PALETTE[0]]
    some = [cell for cell in range(8) if colour(picture, cell) != ABSENT]
    assert (solid, some) == ([2, 3, 4], [1, 2, 3, 4, 5])
    assert picture.data == (4000,)


def test_the_file_holds_the_picture() -> None:
    picture = draw_map(layers((0, MIB, 0, True)), 3 * MIB + 512, title="Büro.vmdk", width=300)
    store = MemoryStore()
    with store.create("map.png") as file:
        write_png(picture, file)
        data = bytearray(file.capacity)
        file.read_into(0, data)
    assert decoded(bytes(data)) == (picture.width, picture.height, [bytes(row) for row in picture.rows])


@pytest.mark.parametrize("width", [255, 8193, 0, -5])
def test_widths_that_are_refused(width: int) -> None:
    with pytest.raises(UsageError, match="256 to 8192"):
        draw_map([], MIB, width=width)


@pytest.mark.parametrize("links", [1, 2, 8, 9, 32, 64])
def test_links_are_told_apart(links: int) -> None:
    assert len(set(link_colours(links))) == links


@pytest.mark.parametrize("capacity", [512, 4096, 5 * MIB, 62 << 40])
def test_any_capacity_and_any_width(capacity: int) -> None:
    for width in (256, 1024, 8192):
        picture = draw_map(layers((0, capacity, 0, True)), capacity, links=33, width=width)
        assert len(picture.rows) == picture.height
        assert {len(row) for row in picture.rows} == {width * 3}
        assert picture.data[0] == capacity


def test_memory_does_not_grow_with_the_runs() -> None:
    def many(count: int) -> Iterator[Layer]:
        for at in range(count):
            yield Layer(Extent(at * 65536, 65536, DATA if at % 2 else NONE), 0, True)

    peaks = []
    for count in (1000, 100_000):
        tracemalloc.start()
        draw_map(many(count), 100_000 * 65536)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5
