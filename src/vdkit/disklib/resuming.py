"""A disk that comes back: what fails for a passing reason is done again on a freshly opened disk.

A lost connection, a request that gets no reply, an expired ticket or a host short of memory costs what was in
flight, not the call: a read of many requests goes on where it stopped. Only errors that say they are
retryable are tried again, a bounded number of times in a row, with growing pauses.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from copy import copy
from typing import Final, TypeVar

from vdkit.block.device import BaseWritableDevice, BlockDevice, WritableDevice
from vdkit.block.extent import Extent
from vdkit.block.workers import CancelToken
from vdkit.errors import (
    Closed,
    ConnectFailed,
    HostError,
    HostFileLocked,
    NotSupported,
    ProtocolError,
    VixError,
)
from vdkit.transports.nfc import NfcDisk

T = TypeVar("T")

#: Failures in a row, without a success between, before the error is the caller's: one to two minutes in all,
#: the time that the management agents of a host take to restart.
DEFAULT_ATTEMPTS: Final = 9
#: The same for a host that could not be reached even once: a closed port should be told soon.
OPEN_ATTEMPTS: Final = 3
#: Seconds before the second attempt, and the longest pause.
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
#: Bytes of the allocation map that are asked for at once.
MAP_WINDOW: Final = 64 << 30

Opener = Callable[[], BlockDevice | WritableDevice]
#: A part of a call: where on the disk, and the caller's bytes.
Piece = tuple[int, memoryview]


class ResumingDisk(BaseWritableDevice):
    """See the module.

    ``opener`` opens the disk, with a new ticket each time it is called; the first call is made here.
    ``sleep`` waits, ``jitter`` gives a number from 0 to 1, ``notify`` hears of each failure that is tried
    again and of the seconds until then. A write that the disk had accepted before the failure is not
    repeated: compare after a restore.
    """

    def __init__(
        self,
        opener: Opener,
        *,
        attempts: int = DEFAULT_ATTEMPTS,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
        cancel: CancelToken | None = None,
        notify: Callable[[VixError, float], None] | None = None,
    ) -> None:
        self._opener = opener
        self._attempts = attempts
        self._sleep, self._jitter, self._cancel, self._notify = sleep, jitter, cancel, notify
        self._lock = threading.Lock()
        self._device: BlockDevice | WritableDevice | None = None
        self._generation = 0
        #: How often opening has failed, and how the last time.
        self._refusals = 0
        self._refusal: VixError | None = None
        self._shape: tuple[int, int, int, bool] | None = None
        first = self._retrying(lambda device: device, opening=True)
        super().__init__(
            name=first.name,
            capacity=first.capacity,
            sector_size=first.sector_size,
            alignment=first.alignment,
            writable=first.writable,
        )
        self._batch = first.io_batch

    @property
    def io_batch(self) -> int:
        return self._batch

    @property
    def reopened(self) -> int:
        """How often the disk has been opened again."""
        return self._generation - 1

    def metadata(self, key: str) -> str | None:
        """A value of the disk's descriptor, ``key`` without ``ddb.``; None if the host has none."""
        self._enter_call()
        try:
            return self._retrying(lambda device: _metadata_of(device, key))
        finally:
            self._leave_call()

    # -- the device's half -----------------------------------------------------------------------

    def _read_into(self, offset: int, view: memoryview) -> None:
        self._read_many(((offset, view),))

    def _read_many(self, pieces: Sequence[Piece]) -> None:
        todo = deque(pieces)
        self._retrying(lambda device: _read_rest(device, todo), todo=todo)

    def _write_from(self, offset: int, view: memoryview) -> None:
        self._write_many(((offset, view),))

    def _write_many(self, pieces: Sequence[Piece]) -> None:
        todo = deque(pieces)
        self._retrying(lambda device: _write_rest(device, todo), todo=todo)

    def _write_zeroes(self, offset: int, length: int) -> None:
        self._retrying(lambda device: _writable(device).write_zeroes(offset, length))

    def _flush(self) -> None:
        self._retrying(lambda device: _writable(device).flush())

    def _extents(self, offset: int, length: int) -> Iterator[Extent]:
        end = offset + length
        while offset < end:
            step = min(MAP_WINDOW, end - offset)
            yield from self._window(offset, step)
            offset += step

    def _window(self, offset: int, length: int) -> list[Extent]:
        """A whole window at once: half a window that fails is asked again, not patched together."""
        self._enter_call()  # a map may be walked after the disk was closed, and must not open it again
        try:
            return self._retrying(lambda device: list(device.extents(offset, length)))
        finally:
            self._leave_call()

    def _close(self) -> None:
        with self._lock:
            device, self._device = self._device, None
        if device is not None:
            device.close()

    # -- trying again ----------------------------------------------------------------------------

    def _retrying(
        self,
        act: Callable[[BlockDevice | WritableDevice], T],
        *,
        opening: bool = False,
        todo: deque[Piece] | None = None,
    ) -> T:
        """Do it until it is done; ``todo`` is what is left of it: failures count from the last progress."""
        failures = 0
        while True:
            generation = -1
            left = _length(todo)
            try:
                device, generation = self._current()
                return act(device)
            except Closed:
                # Another thread met a failure and closed the disk under us: go on with the new one.
                if opening or self._is_held(generation):
                    raise
            except VixError as error:
                failures = 1 if _length(todo) < left else failures + 1
                # Until a host has noticed that a connection is gone, its session keeps the disk locked.
                locked = generation < 0 and not opening and isinstance(error, HostFileLocked)
                if not (error.retryable or locked):
                    raise
                if not (isinstance(error, HostError) and self._usable(generation)):
                    self._drop(generation)
                closed_port = opening and isinstance(error, ConnectFailed)
                attempts = min(self._attempts, OPEN_ATTEMPTS) if closed_port else self._attempts
                if failures >= attempts or (not opening and self.closed):
                    raise
                self._pause(error, failures)

    def _current(self) -> tuple[BlockDevice | WritableDevice, int]:
        """The open disk and its number; opened here if there is none."""
        refusals = self._refusals
        with self._lock:
            if self._device is None:
                if self._refusals != refusals and self._refusal is not None:
                    # Another thread has tried while we waited. If each tried in turn, a silent host would
                    # cost as many times its deadline as there are threads.
                    raise copy(self._refusal)
                self._device = self._open_again()
                self._generation += 1
            return self._device, self._generation

    def _open_again(self) -> BlockDevice | WritableDevice:
        try:
            device = self._opener()
            try:
                self._same_shape(device)
            except BaseException:
                device.close()
                raise
        except VixError as error:
            self._refusal = error
            self._refusals += 1
            raise
        return device

    def _is_held(self, generation: int) -> bool:
        """True if the disk of that number has not been let go."""
        with self._lock:
            return self._device is not None and generation == self._generation

    def _usable(self, generation: int) -> bool:
        """True if the disk of that number goes on: a host that refuses a request keeps the session."""
        with self._lock:
            held = generation == self._generation
            return held and isinstance(self._device, NfcDisk) and not self._device.failed

    def _same_shape(self, device: BlockDevice | WritableDevice) -> None:
        shape = (device.capacity, device.sector_size, device.alignment, device.writable)
        if self._shape is None:
            self._shape = shape
        elif shape != self._shape:
            size = self._shape[0]
            raise ProtocolError(
                f"{device.name}: opened again it is another disk: {shape[0]} bytes instead of {size}"
            )

    def _drop(self, generation: int) -> None:
        """Let go of the disk of that number, unless another thread has."""
        with self._lock:
            if generation != self._generation or self._device is None:
                return
            broken, self._device = self._device, None
        # It waits for calls of other threads; over a broken connection they fail too.
        with suppress(VixError):
            broken.close()

    def _pause(self, error: VixError, failures: int) -> None:
        seconds = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (failures - 1)) * (0.5 + self._jitter() / 2)
        if self._notify is not None:
            self._notify(error, seconds)
        if self._cancel is not None:
            self._cancel.check()
        self._sleep(seconds)
        if self._cancel is not None:
            self._cancel.check()


def _metadata_of(device: BlockDevice, key: str) -> str | None:
    if not isinstance(device, NfcDisk):
        raise NotSupported(f"{device.name}: it has no metadata that can be read")
    return device.metadata(key)


def _writable(device: BlockDevice | WritableDevice) -> WritableDevice:
    assert isinstance(device, WritableDevice)
    return device


def _read_rest(device: BlockDevice, todo: deque[Piece]) -> None:
    """Read what is left; a disk of a host takes off ``todo`` what it has read when it fails."""
    if isinstance(device, NfcDisk):
        device.read_rest(todo)
    elif len(todo) == 1:
        device.read_into(*todo[0])
    else:
        device.read_many(list(todo))


def _write_rest(device: BlockDevice | WritableDevice, todo: deque[Piece]) -> None:
    target = _writable(device)
    if isinstance(target, NfcDisk):
        target.write_rest(todo)
    elif len(todo) == 1:
        target.write_from(*todo[0])
    else:
        target.write_many(list(todo))


def _length(todo: deque[Piece] | None) -> int:
    return sum(len(view) for _, view in todo) if todo is not None else 0
