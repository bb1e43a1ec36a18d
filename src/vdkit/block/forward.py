"""The base of every wrapper: a device that passes each call on to the one inside, which it owns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import Extent
from vdkit.errors import ReadOnly


class Forwarding(BaseWritableDevice):
    """Subclasses override what they change; all else, map and alignment included, is the inner device's."""

    def __init__(
        self, inner: BlockDevice, *, writable: bool | None = None, alignment: int | None = None
    ) -> None:
        super().__init__(
            name=inner.name,
            capacity=inner.capacity,
            sector_size=inner.sector_size,
            alignment=inner.alignment if alignment is None else alignment,
            writable=inner.writable if writable is None else writable,
        )
        self._inner = inner
        self._target: WritableDevice | None = inner if isinstance(inner, WritableDevice) else None

    @property
    def inner(self) -> BlockDevice:
        """The device that calls are passed to."""
        return self._inner

    @property
    def io_batch(self) -> int:
        return self._inner.io_batch

    @property
    def write_unit(self) -> int:
        """Bytes of a grain where the inner device is a link that allocates in grains, else 1."""
        unit: int = getattr(self._inner, "write_unit", 1)
        return unit

    def _writer(self) -> WritableDevice:
        if self._target is None:
            raise ReadOnly(f"{self.name}: opened read-only")
        return self._target

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._inner.read_into(offset, view)

    def _read_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._inner.read_many(pieces)

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        return self._inner.extents(offset, length)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._writer().write_from(offset, view)

    def _write_many(self, pieces: Sequence[tuple[int, memoryview]]) -> None:
        self._writer().write_many(pieces)

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._writer().write_zeroes(offset, length)

    def _flush(self) -> None:
        self._writer().flush()

    def _resize(self, capacity: int) -> None:
        self._writer().resize(capacity)

    def _close(self) -> None:
        self._inner.close()


def close_all(devices: Sequence[BlockDevice]) -> None:
    """Close every one of them, then raise the first error."""
    failed: Exception | None = None
    for device in devices:
        try:
            device.close()
        except Exception as error:  # noqa: BLE001  the others must be closed all the same
            failed = failed or error
    if failed is not None:
        raise failed
