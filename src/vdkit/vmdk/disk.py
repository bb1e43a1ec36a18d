"""A disk: the leaf and all its parents, opened, as one device.

Source of facts on content ids: VMware's "Virtual Disk Format 5.0".
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

from vdkit.block.chain import Chain
from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import Extent, ExtentKind
from vdkit.block.forward import close_all
from vdkit.block.merge import Placement
from vdkit.errors import CorruptDisk, ReadOnly
from vdkit.vmdk.cid import new_cid
from vdkit.vmdk.descriptor import Descriptor
from vdkit.vmdk.embedded import rewrite_embedded
from vdkit.vmdk.info import DiskInfo, disk_info, sector_size
from vdkit.vmdk.link import Link
from vdkit.vmdk.textfile import rewrite_text


class Disk(BaseWritableDevice):
    """Made by :func:`~vdkit.vmdk.open.open_disk` and its like; owns the links.

    The first write after opening gives the leaf a new content id (not to a disk that was just created: its
    id is new already). Parents are never changed.
    """

    def __init__(self, links: Sequence[Link], *, writable: bool, fresh: bool = False) -> None:
        """``links`` leaf first."""
        self._links = tuple(links)
        leaf = links[0].device
        self._device: BlockDevice
        if len(links) == 1:
            self._device = leaf
            if not links[0].has_parent:
                self._device = Chain([leaf], name=str(links[0].place))
        else:
            self._device = Chain([link.device for link in links], name=str(links[0].place))
        self._out = self._device if isinstance(self._device, WritableDevice) else None
        super().__init__(
            name=str(links[0].place),
            capacity=leaf.capacity,
            sector_size=sector_size(links),
            writable=writable and leaf.writable,
        )
        self._stamped = fresh
        self._stamp_lock = threading.Lock()
        if isinstance(self._device, Chain):
            quick = self._device.quick_reader(super().read_into)
            if quick is not None:
                # In place of the method: passing the call on would cost a tenth of a small read.
                self.__dict__["read_into"] = quick

    @property
    def info(self) -> DiskInfo:
        return disk_info(self._links, self._links[0].device.capacity)

    @property
    def links(self) -> tuple[Link, ...]:
        """Leaf first."""
        return self._links

    @property
    def descriptor(self) -> Descriptor:
        """The leaf's."""
        return self._links[0].descriptor

    def edit_descriptor(self, change: Callable[[Descriptor], None]) -> None:
        """Change the leaf's descriptor in its file and here, or nowhere; the content id stays."""
        if self._out is None or not self._writable:
            raise ReadOnly(f"{self._name}: opened read-only")
        with self._stamp_lock:
            leaf = self._links[0]
            before = leaf.descriptor
            leaf.descriptor = Descriptor.parse(before.to_bytes(), str(leaf.place))
            try:
                change(leaf.descriptor)
                write_descriptor(leaf)
            except BaseException:
                leaf.descriptor = before
                raise

    @property
    def io_batch(self) -> int:
        return self._device.io_batch

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._device.read_into(offset, view)

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._device.read_many(pieces)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._believable(self._device.extents(offset, length))

    def _believable(self, extents: Iterator[Extent]) -> Iterator[Extent]:
        """Refuse a map of more data than the files can hold, before anybody copies by it.

        Tables whose entries name one grain many times make terabytes of a file of some KiB.
        """
        held, most = 0, 0
        for extent in extents:
            if extent.kind is ExtentKind.DATA:
                held += extent.length
                if held > most:
                    most = sum(
                        most_data(part) for link in self._links for part in link.parts or (link.device,)
                    )
                    if held > most:
                        raise CorruptDisk(
                            f"{self._name}: its map has more data than its files can hold: "
                            "they were cut short, or its tables name the same grains more than once",
                            remedy="check the disk (vdkit check); single ranges of it can still be read",
                        )
            yield extent

    def layers(self) -> Iterator[tuple[Placement, int]]:
        """The map with the number of the link that answers for each run; see :meth:`Chain.layers`."""
        if isinstance(self._device, Chain):
            return self._device.layers()
        return ((Placement(*extent), 0) for extent in self.extents())

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._target().write_from(offset, view)

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._target().write_many(pieces)

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._target().write_zeroes(offset, length)

    def _flush(self) -> None:
        if self._out is not None:
            self._out.flush()

    def _close(self) -> None:
        self.__dict__.pop("read_into", None)
        self._device.close()

    def _target(self) -> WritableDevice:
        device = self._out
        if device is None:
            raise ReadOnly(f"{self._name}: opened read-only")
        if not self._stamped:
            with self._stamp_lock:
                if not self._stamped:
                    self._stamp()
                    self._stamped = True
        return device

    def _stamp(self) -> None:
        """A new content id, before anything is written: children made of the old content must notice."""
        leaf = self._links[0]
        leaf.descriptor.set_cid(new_cid())
        write_descriptor(leaf)


def most_data(extent: BlockDevice) -> int:
    """Bytes of the disk that an extent file can hold at most."""
    known = getattr(extent, "most_data", None)
    return extent.capacity if known is None else int(known)


def write_descriptor(link: Link) -> None:
    """Bring the file of a link's descriptor up to date; a crash leaves the old one or the new one."""
    data = link.descriptor.to_bytes()
    place = link.place
    if link.header is None:
        rewrite_text(place, data)
        return
    with place.store.open_writable(place.name) as file:
        link.header = rewrite_embedded(file, link.header, data)


def close_links(links: Sequence[Link]) -> None:
    close_all([link.device for link in links])
