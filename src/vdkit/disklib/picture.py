"""A picture of an allocation map: rows of cells from the start of the disk to its end.

Every cell is an equal, round part of the disk; its hue says which link holds most of its data, its strength
how much of it is data. Only the cells are kept in memory, never the runs, so that a disk of 62 TiB costs no
more than one of 4 MiB.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from vdkit.block.extent import ExtentKind
from vdkit.block.local import FolderStore
from vdkit.block.store import replacing
from vdkit.disklib.diskmap import Layer
from vdkit.disklib.pixelfont import dots, text_width
from vdkit.errors import AlreadyExists, UsageError

if TYPE_CHECKING:
    from vdkit.block.device import WritableDevice

Colour = tuple[int, int, int]

MIN_WIDTH: Final = 256
MAX_WIDTH: Final = 8192
DEFAULT_WIDTH: Final = 1024
#: Rows of cells at most; a disk whose size is no power of two takes more than half of them.
MAX_ROWS: Final = 64
_SMALLEST_CELL: Final = 512

_LEFT, _RIGHT, _TOP, _LINE = 72, 12, 30, 14
_PIXELS: Final = 6
_LABEL_EVERY: Final = 8
_SIGNATURE: Final = b"\x89PNG\r\n\x1a\n"

PAPER: Final[Colour] = (255, 255, 255)
INK: Final[Colour] = (60, 60, 66)
#: In no link: reads as zeroes.
ABSENT: Final[Colour] = (228, 230, 234)
#: Zeroes that a link holds or promises.
ZERO: Final[Colour] = (164, 178, 200)
#: Data by depth, the leaf first: hues that are told apart with colour-blind eyes too.
PALETTE: Final[tuple[Colour, ...]] = (
    (0, 96, 173),
    (222, 111, 0),
    (0, 138, 96),
    (178, 57, 132),
    (156, 122, 0),
    (86, 160, 222),
    (196, 38, 38),
    (94, 74, 160),
)
#: A cell with any data at all shows at least so much of its hue.
_FAINTEST: Final = 0.35


@dataclass(frozen=True, slots=True)
class Picture:
    """``rows`` of RGB bytes; ``cell`` bytes of the disk per cell; shares in bytes, ``data`` by depth."""

    width: int
    height: int
    rows: list[bytearray]
    cell: int
    columns: int
    data: tuple[int, ...]
    zero: int
    absent: int


class _Cells:
    """How many bytes of each kind every cell has: the links by depth, then zero."""

    def __init__(self, capacity: int, columns: int, links: int) -> None:
        self.size = _SMALLEST_CELL
        while self.size * columns * MAX_ROWS < capacity:
            self.size *= 2
        self.count = max(1, -(-capacity // self.size))
        self.capacity = capacity
        self.kinds = links + 1
        self._bytes = array("Q", bytes(8 * self.count * self.kinds))
        self.totals = [0] * self.kinds

    def add(self, layers: Iterable[Layer]) -> None:
        for extent, depth, present in layers:
            if not present:
                continue
            kind = depth if extent.kind is ExtentKind.DATA else self.kinds - 1
            self.totals[kind] += extent.length
            self._spread(extent.offset, extent.end, kind)

    def _spread(self, start: int, end: int, kind: int) -> None:
        size, kinds, held = self.size, self.kinds, self._bytes
        first, last = start // size, (end - 1) // size
        if first == last:
            held[first * kinds + kind] += end - start
            return
        held[first * kinds + kind] += (first + 1) * size - start
        held[last * kinds + kind] += end - last * size
        for cell in range(first + 1, last):
            held[cell * kinds + kind] += size

    def colour(self, cell: int, hues: Sequence[Colour]) -> Colour:
        size = min(self.size, self.capacity - cell * self.size)
        *data, zero = self._bytes[cell * self.kinds : (cell + 1) * self.kinds]
        ground = _mix(ABSENT, ZERO, zero / size) if size else ABSENT
        most = max(data)
        if most == 0:
            return ground
        # The square root keeps small shares apart, which are the most frequent ones.
        strength = _FAINTEST + (1 - _FAINTEST) * (sum(data) / size) ** 0.5
        return _mix(ground, hues[data.index(most)], strength)


def draw_map(
    layers: Iterable[Layer], capacity: int, *, links: int = 1, title: str = "", width: int = DEFAULT_WIDTH
) -> Picture:
    """Draw the map of a disk of ``capacity`` bytes and ``links`` links. Raises UsageError for a width that
    is not 256 to 8192.
    """
    if not MIN_WIDTH <= width <= MAX_WIDTH:
        raise UsageError(f"a picture of width {width}", remedy=f"choose {MIN_WIDTH} to {MAX_WIDTH} pixels")
    columns = 1
    while (columns * 2) * _PIXELS <= width - _LEFT - _RIGHT:
        columns *= 2
    pixels = (width - _LEFT - _RIGHT) // columns
    cells = _Cells(capacity, columns, links)
    cells.add(layers)
    hues = link_colours(links)
    rows = -(-cells.count // columns)
    legend = _legend(cells, hues, capacity)
    legend_rows = _wrapped(legend, width - _LEFT - _RIGHT)
    height = _TOP + rows * pixels + 10 + len(legend_rows) * _LINE + 6
    canvas = _Canvas(width, height)
    canvas.text(_LEFT, 8, f"{title}  {_size(capacity)}  1 cell = {_size(cells.size)}".strip(), INK)
    for row in range(rows):
        y = _TOP + row * pixels
        if row % _LABEL_EVERY == 0:
            label = _size(row * columns * cells.size)
            canvas.text(_LEFT - 8 - text_width(label), y, label, INK)
            canvas.box(_LEFT - 5, y, 3, 1, INK)
        for column in range(min(columns, cells.count - row * columns)):
            colour = cells.colour(row * columns + column, hues)
            canvas.box(_LEFT + column * pixels, y, pixels - 1, pixels - 1, colour)
    y = _TOP + rows * pixels + 10
    for number, line in enumerate(legend_rows):
        for x, colour, words in line:
            canvas.box(_LEFT + x, y + number * _LINE - 1, 9, 9, colour)
            canvas.text(_LEFT + x + 14, y + number * _LINE, words, INK)
    data, zero = tuple(cells.totals[:-1]), cells.totals[-1]
    absent = capacity - sum(data) - zero
    return Picture(width, height, canvas.rows, cells.size, columns, data, zero, absent)


def link_colours(links: int) -> list[Colour]:
    """A hue per link, leaf first: of the palette if it has enough, else a run from warm to cold."""
    if links <= len(PALETTE):
        return list(PALETTE[:links])
    stops = (PALETTE[6], PALETTE[1], PALETTE[2], PALETTE[0], PALETTE[7])
    made = []
    for number in range(links):
        place = number / (links - 1) * (len(stops) - 1)
        low = min(int(place), len(stops) - 2)
        made.append(_mix(stops[low], stops[low + 1], place - low))
    return made


def write_png(picture: Picture, file: WritableDevice) -> None:
    """Fill an empty file."""
    import io

    import png

    buffer = io.BytesIO()
    writer = png.Writer(width=picture.width, height=picture.height, greyscale=False, bitdepth=8)
    writer.write(buffer, picture.rows)
    file.resize(buffer.tell())
    file.write_from(0, buffer.getbuffer())


def save_png(picture: Picture, path: Path) -> None:
    """Write a picture to a local file. One that is there is replaced, any other file is not."""
    store = FolderStore(path.parent)
    if store.exists(path.name):
        with store.open(path.name) as old:
            head = bytearray(min(len(_SIGNATURE), old.capacity))
            old.read_into(0, head)
        if head and bytes(head) != _SIGNATURE:
            raise AlreadyExists(f"{path}: it exists and is no PNG picture", remedy="choose another name")
    beside = f"{path.name}.vdkit-partial"
    with replacing(store, path.name, beside), store.create(beside) as file:
        write_png(picture, file)


class _Canvas:
    def __init__(self, width: int, height: int) -> None:
        self._width = width
        self.rows = [bytearray(bytes(PAPER) * width) for _ in range(height)]

    def box(self, x: int, y: int, width: int, height: int, colour: Colour) -> None:
        for row in self.rows[y : y + height]:
            row[x * 3 : (x + width) * 3] = bytes(colour) * width

    def text(self, x: int, y: int, words: str, colour: Colour) -> None:
        """What does not fit to the right is left out."""
        for dot_x, dot_y in dots(words):
            if 0 <= x + dot_x < self._width and y + dot_y < len(self.rows):
                self.rows[y + dot_y][(x + dot_x) * 3 : (x + dot_x + 1) * 3] = bytes(colour)


def _legend(cells: _Cells, hues: Sequence[Colour], capacity: int) -> list[tuple[Colour, str]]:
    def share(count: int) -> str:
        return f"{count * 100 / capacity:.1f} %" if capacity else "0 %"

    *data, zero = cells.totals
    entries = []
    for depth, (hue, count) in enumerate(zip(hues, data, strict=True)):
        name = "data"
        if len(data) > 1:
            name = {0: "leaf", len(data) - 1: "base"}.get(depth, f"link {depth}")
        entries.append((hue, f"{name} {share(count)}"))
    entries.append((ZERO, f"zero {share(zero)}"))
    entries.append((ABSENT, f"not allocated {share(capacity - sum(data) - zero)}"))
    return entries


def _wrapped(entries: list[tuple[Colour, str]], width: int) -> list[list[tuple[int, Colour, str]]]:
    lines: list[list[tuple[int, Colour, str]]] = [[]]
    x = 0
    for colour, words in entries:
        needed = 14 + text_width(words) + 18
        if x + needed > width and lines[-1]:
            lines.append([])
            x = 0
        lines[-1].append((x, colour, words))
        x += needed
    return lines


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    share = min(1.0, share)
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _size(count: int) -> str:
    """``1.5 GiB``; whole numbers where there are some."""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    unit = 0
    while unit < len(units) - 1 and count >> 10 * (unit + 1):
        unit += 1
    if unit and count % (1 << 10 * unit) and count % (1 << 10 * (unit - 1)) == 0 and count >> 10 * unit < 10:
        unit -= 1
    value = count / (1 << 10 * unit)
    return f"{value:.0f} {units[unit]}" if value == int(value) else f"{value:.1f} {units[unit]}"
