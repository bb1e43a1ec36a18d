"""The contract of a block device, as tests: subclass, say how to make one, run pytest.

::

    from vdkit.testing.devices import DeviceConformance

    class TestMyDevice(DeviceConformance):
        def make(self, folder: Path, content: bytes) -> BlockDevice:
            return MyDevice(...)

Needs pytest and hypothesis. The rules are those of :mod:`vdkit.block.device`.
"""

from __future__ import annotations

import contextlib
import mmap
import random
import threading
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.extent import Extent, ExtentKind, coalesce
from vdkit.errors import Closed, OutOfRange, UsageError, VixError
from vdkit.errors import ReadOnly as ReadOnlyError

#: One step of a random run: what, offset and length in units, a byte to fill with.
Step = tuple[str, int, int, int]


def sample(capacity: int, seed: int = 1) -> bytes:
    """Bytes with data, small and large holes and a run of zeroes that looks like a hole."""
    content = bytearray(random.Random(seed).randbytes(capacity))
    for start, stop in ((0.10, 0.30), (0.45, 0.46), (0.50, 0.75), (0.93, 0.97)):
        low, high = (int(capacity * x) // 512 * 512 for x in (start, stop))
        content[low:high] = bytes(high - low)
    return bytes(content)


def read(device: BlockDevice, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    device.read_into(offset, buffer)
    return bytes(buffer)


def read_all(device: BlockDevice) -> bytes:
    """The whole content by way of the map; what a link does not hold comes as zeroes."""
    content = bytearray(device.capacity)
    view = memoryview(content)
    for extent in device.extents():
        if extent.kind is not ExtentKind.ABSENT:
            device.read_into(extent.offset, view[extent.offset : extent.end])
    return bytes(content)


def check_map(device: BlockDevice, offset: int, length: int, content: bytes, *, link: bool = False) -> None:
    """The map of a question has its borders, is coalesced, and true to ``content`` where it says zero."""
    extents = list(device.extents(offset, length))
    position = offset
    for extent in extents:
        assert extent.offset == position, "extents are ascending and contiguous"
        assert extent.length > 0, "no extent is empty"
        position = extent.end
        if extent.kind is ExtentKind.ZERO:
            assert not any(content[extent.offset : extent.end]), f"{extent} is promised to be zero"
        assert link or extent.kind is not ExtentKind.ABSENT, "only a link of a chain says absent"
    assert position == offset + length, "extents cover exactly the question"
    assert extents == list(coalesce(extents)), "neighbours of one kind are joined"


class DeviceConformance(ABC):
    """Every rule for a device that holds what it was made with. See the module."""

    #: Bytes of the device that the suite asks for; override for formats that want a certain multiple.
    capacity: ClassVar[int] = 600 * 1024 + 512
    #: What is made can be written.
    writable: ClassVar[bool] = True
    #: What is made can change its capacity.
    resizable: ClassVar[bool] = False
    #: What is made is a link of a chain, and may say ABSENT.
    link: ClassVar[bool] = False
    #: Random runs of the comparison with a bytearray.
    examples: ClassVar[int] = 25

    @abstractmethod
    def make(self, folder: Path, content: bytes) -> BlockDevice:
        """A new device that holds ``content``; ``folder`` is empty and its own."""

    @pytest.fixture
    def content(self) -> bytes:
        return sample(self.capacity)

    @pytest.fixture
    def device(self, tmp_path: Path, content: bytes) -> Iterator[BlockDevice]:
        with self.make(tmp_path, content) as made:
            yield made

    def _writable(self, device: BlockDevice) -> WritableDevice:
        assert isinstance(device, WritableDevice)
        return device

    # -- what it is ------------------------------------------------------------------------------

    def test_describes_itself(self, device: BlockDevice, content: bytes) -> None:
        assert isinstance(device, BlockDevice)
        assert device.capacity == len(content)
        assert device.name
        assert device.name in repr(device)
        assert device.sector_size >= 1
        assert device.alignment >= 1
        assert device.io_batch >= 4096
        assert device.writable == self.writable
        if self.writable:
            assert isinstance(device, WritableDevice)

    # -- reading ---------------------------------------------------------------------------------

    def test_reads_what_it_holds(self, device: BlockDevice, content: bytes) -> None:
        assert read_all(device) == content
        if not self.link:
            assert read(device, 0, len(content)) == content

    def test_reads_parts(self, device: BlockDevice, content: bytes) -> None:
        unit, dice = device.alignment, random.Random(2)
        for _ in range(50):
            low, high = sorted(dice.choices(range(len(content) // unit + 1), k=2))
            for extent in device.extents(low * unit, (high - low) * unit):
                if extent.kind is not ExtentKind.ABSENT:
                    stop = min(extent.end, extent.offset + max(unit, 70_000 // unit * unit))
                    expected = content[extent.offset : stop]
                    assert read(device, extent.offset, stop - extent.offset) == expected

    def test_reads_nothing(self, device: BlockDevice) -> None:
        device.read_into(0, bytearray())
        device.read_many([])
        assert list(device.extents(0, 0)) == []

    def test_reads_into_any_buffer(self, device: BlockDevice, content: bytes) -> None:
        offset = self._some_data(device)
        size = max(512, device.alignment)
        expected = content[offset : offset + size]
        words = array("I", bytes(size))
        device.read_into(offset, memoryview(words))
        assert words.tobytes() == expected
        pages = mmap.mmap(-1, size)
        device.read_into(offset, pages)
        assert bytes(memoryview(pages)[:size]) == expected
        with pytest.raises(UsageError):
            device.read_into(offset, memoryview(bytes(size)))

    def _some_data(self, device: BlockDevice) -> int:
        """An aligned offset with data behind it."""
        size = max(512, device.alignment)
        held = (e for e in device.extents() if e.kind is ExtentKind.DATA)
        for extent in held:
            start = -(-extent.offset // size) * size
            if start + size <= extent.end:
                return start
        raise AssertionError("the sample's data is nowhere in the map")

    def test_reads_many(self, device: BlockDevice, content: bytes) -> None:
        unit, dice = max(512, device.alignment), random.Random(3)
        pieces: list[tuple[int, bytearray]] = []
        for extent in device.extents():
            if extent.kind is ExtentKind.ABSENT:
                continue
            for offset in range(extent.offset, extent.end, 9 * unit):
                pieces.append((offset, bytearray(min(9 * unit, extent.end - offset))))
        dice.shuffle(pieces)
        pieces.append((pieces[0][0], bytearray(len(pieces[0][1]))))  # the same bytes twice
        pieces.append((0, bytearray()))
        device.read_many(pieces)
        for offset, buffer in pieces:
            assert bytes(buffer) == content[offset : offset + len(buffer)]

    def test_refuses_ranges_outside(self, device: BlockDevice) -> None:
        unit, end = device.alignment, device.capacity
        last = end // unit * unit
        for offset, length in ((-unit, unit), (end, unit), (last, 2 * unit), (1 << 62, unit)):
            with pytest.raises(OutOfRange):
                device.read_into(offset, bytearray(length))
            with pytest.raises(OutOfRange):
                device.read_many([(0, bytearray(unit)), (offset, bytearray(length))])
            with pytest.raises(OutOfRange):
                list(device.extents(offset, length))

    def test_refuses_misaligned_calls(self, device: BlockDevice) -> None:
        if device.alignment == 1:
            return
        with pytest.raises(UsageError):
            device.read_into(1, bytearray(device.alignment))
        with pytest.raises(UsageError):
            device.read_into(0, bytearray(device.alignment + 1))
        if self.writable:
            with pytest.raises(UsageError):
                self._writable(device).write_from(1, bytes(device.alignment))

    # -- the map ---------------------------------------------------------------------------------

    def test_map_is_exact(self, device: BlockDevice, content: bytes) -> None:
        check_map(device, 0, len(content), content, link=self.link)
        dice = random.Random(4)
        for _ in range(100):
            low, high = sorted(dice.choices(range(len(content) + 1), k=2))
            check_map(device, low, high - low, content, link=self.link)

    def test_map_of_a_part_is_the_part_of_the_map(self, device: BlockDevice) -> None:
        whole = list(device.extents())
        for low, length in ((0, device.capacity), (4096, 65536), (device.capacity - 600, 600)):
            high = low + length
            parts = [
                Extent(max(e.offset, low), min(e.end, high) - max(e.offset, low), e.kind)
                for e in whole
                if e.offset < high and e.end > low
            ]
            assert list(device.extents(low, length)) == parts

    def test_absent_is_refused(self, device: BlockDevice) -> None:
        for extent in device.extents():
            if extent.kind is ExtentKind.ABSENT:
                assert self.link
                with pytest.raises(VixError):
                    device.read_into(extent.offset, bytearray(min(extent.length, device.alignment * 512)))

    # -- lifetime --------------------------------------------------------------------------------

    def test_closed_is_closed(self, tmp_path: Path, content: bytes) -> None:
        device = self.make(tmp_path, content)
        started = device.extents()
        device.close()
        device.close()
        calls: list[Callable[[], object]] = [
            lambda: device.read_into(0, bytearray(device.alignment)),
            lambda: device.read_many([(0, bytearray(device.alignment))]),
            lambda: device.extents(),
        ]
        if self.writable:
            target = self._writable(device)
            calls += [
                lambda: target.write_from(0, bytes(device.alignment)),
                lambda: target.write_many([(0, bytes(device.alignment))]),
                lambda: target.write_zeroes(0, device.alignment),
                target.flush,
            ]
        for call in calls:
            with pytest.raises(Closed):
                call()
        # A map that was being walked ends or says so; it must not touch what is released.
        with contextlib.suppress(VixError):
            list(started)

    def test_close_under_fire(self, tmp_path: Path, content: bytes) -> None:
        device = self.make(tmp_path, content)
        offset = self._some_data(device)
        size = max(512, device.alignment)
        wrong: list[object] = []
        running = threading.Barrier(4)

        def hammer() -> None:
            running.wait()
            try:
                while True:
                    if read(device, offset, size) != content[offset : offset + size]:
                        wrong.append("other bytes")
            except Closed:
                return
            except BaseException as error:  # noqa: BLE001  told to the main thread
                wrong.append(error)

        threads = [threading.Thread(target=hammer) for _ in range(3)]
        for thread in threads:
            thread.start()
        running.wait()
        device.close()
        for thread in threads:
            thread.join()
        assert wrong == []

    def test_threads_read_together(self, device: BlockDevice, content: bytes) -> None:
        unit = max(512, device.alignment)
        held = [e for e in device.extents() if e.kind is not ExtentKind.ABSENT and e.length >= unit]

        def work(seed: int) -> None:
            dice = random.Random(seed)
            for _ in range(60):
                extent = dice.choice(held)
                offset = -(-dice.randrange(extent.offset, extent.end) // unit) * unit
                size = min(unit * dice.randint(1, 40), (extent.end - offset) // unit * unit)
                if size > 0:
                    assert read(device, offset, size) == content[offset : offset + size]

        in_threads(work, 4)

    # -- writing ---------------------------------------------------------------------------------

    def test_read_only_refuses_changes(self, device: BlockDevice) -> None:
        if self.writable or not isinstance(device, WritableDevice):
            return
        unit = device.alignment
        calls: list[Callable[[], None]] = [
            lambda: device.write_from(0, bytes(unit)),
            lambda: device.write_many([(0, bytes(unit))]),
            lambda: device.write_zeroes(0, unit),
            lambda: device.resize(device.capacity),
        ]
        for call in calls:
            with pytest.raises(ReadOnlyError):
                call()
        device.flush()

    def test_refuses_writes_outside(self, device: BlockDevice, content: bytes) -> None:
        if not self.writable:
            return
        target, unit, end = self._writable(device), device.alignment, device.capacity
        last = end // unit * unit
        for offset, length in ((-unit, unit), (end, unit), (last, 2 * unit)):
            with pytest.raises(OutOfRange):
                target.write_from(offset, bytes(length))
            with pytest.raises(OutOfRange):
                target.write_many([(offset, bytes(length))])
            with pytest.raises(OutOfRange):
                target.write_zeroes(offset, length)
        assert read_all(device) == content

    def test_threads_write_apart(self, device: BlockDevice, content: bytes) -> None:
        if not self.writable:
            return
        target, unit = self._writable(device), max(512, device.alignment)
        model = bytearray(content)
        share = len(content) // 4 // unit * unit

        def work(number: int) -> None:
            dice = random.Random(number)
            for _ in range(40):
                # Shares interleave in small steps, so that neighbours meet in pages and grains.
                size = unit * dice.randint(1, 6)
                offset = (dice.randrange(share // unit - 6) // 8 * 32 + number * 8) * unit
                if offset + 8 * unit > len(content):
                    continue
                data = dice.randbytes(size)
                target.write_from(offset, data)
                model[offset : offset + size] = data
                assert read(device, offset, size) == data

        in_threads(work, 4)
        target.flush()
        assert read_all(device) == bytes(model)
        check_map(device, 0, len(content), bytes(model), link=self.link)

    def test_behaves_as_a_bytearray(self, tmp_path: Path, content: bytes) -> None:
        if not self.writable:
            return
        number = 0

        @settings(
            max_examples=self.examples,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(steps())
        def run(plan: list[Step]) -> None:
            nonlocal number
            folder = tmp_path / str(number)
            folder.mkdir()
            number += 1
            with self.make(folder, content) as device:
                model = bytearray(content)
                for step in plan:
                    self._apply(self._writable(device), model, step)
                assert read_all(device) == bytes(model)
                check_map(device, 0, len(model), bytes(model), link=self.link)

        run()

    def _apply(self, device: WritableDevice, model: bytearray, step: Step) -> None:
        """Do one step to both; offsets and lengths are folded into the device."""
        act, place, size, fill = step
        unit = device.alignment
        count = len(model) // unit
        if act == "resize":
            if self.resizable:
                capacity = place % (2 * self.capacity // unit) * unit
                device.resize(capacity)
                assert device.capacity == capacity
                del model[capacity:]
                model.extend(bytes(capacity - len(model)))
            return
        if not count:
            return
        offset = place % count * unit
        length = min(size * unit, count * unit - offset)
        match act:
            case "write":
                device.write_from(offset, bytes([fill]) * length)
                model[offset : offset + length] = bytes([fill]) * length
            case "write_many":
                middle = length // 2 // unit * unit
                parts = [(offset + middle, length - middle), (offset, middle)]
                device.write_many([(at, bytes([fill, at % 251] * n)[:n]) for at, n in parts])
                for at, n in parts:
                    model[at : at + n] = bytes([fill, at % 251] * n)[:n]
            case "zero":
                device.write_zeroes(offset, length)
                model[offset : offset + length] = bytes(length)
            case "read":
                if not self.link:
                    assert read(device, offset, length) == model[offset : offset + length]
            case "map":
                check_map(device, offset, length, bytes(model), link=self.link)
            case "flush":
                device.flush()
            case _:
                raise AssertionError(act)


def steps() -> st.SearchStrategy[list[Step]]:
    """Random runs of a device's calls."""
    acts = ["write", "write", "write_many", "zero", "zero", "read", "map", "flush", "resize"]
    places = st.one_of(st.integers(0, 1 << 21), st.integers(0, 40).map(lambda i: i * 65536))
    sizes = st.one_of(st.integers(0, 64), st.integers(0, 1 << 18), st.just(65536))
    return st.lists(
        st.tuples(st.sampled_from(acts), places, sizes, st.integers(0, 255)), min_size=1, max_size=12
    )


def in_threads(work: Callable[[int], Any], count: int) -> None:
    """Run ``work(0)`` to ``work(count - 1)`` at once and raise the first failure."""
    failed: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:  # noqa: BLE001  raised in the main thread
            failed.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]
