"""NFC client: a disk of an ESXi host over TCP 902, in TLS (``nbdssl``) or, after it, in clear (``nbd``).

Source of facts: our NFC specification (``docs/reference/nfc.md``).
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, get_args

from vdkit.block.device import MAX_CAPACITY
from vdkit.errors import HostError, ProtocolError, TransportError, UsageError
from vdkit.transports.nfc.compressing import AutoCompressing, Compressing
from vdkit.transports.nfc.disk import NfcDisk, end_request
from vdkit.transports.nfc.host_errors import in_phase
from vdkit.transports.nfc.opening import open_stream
from vdkit.transports.nfc.operations import Exchange
from vdkit.transports.nfc.pace import Pace
from vdkit.transports.nfc.session import Session
from vdkit.transports.nfc.target import (
    BUFFER_UNIT,
    DEFAULT_WINDOW,
    FAR_REQUEST_SIZE,
    FAR_SECONDS,
    HELLO_BUFFERS,
    MAX_IN_FLIGHT,
    NEAR_REQUEST_SIZE,
    CompressionName,
    Mode,
    NfcTarget,
    Timeouts,
)
from vdkit.wire.nfc import records
from vdkit.wire.nfc.codecs import compression_of
from vdkit.wire.nfc.limits import DEFAULT_HELLO_BUFFER, MAX_HELLO_TOTAL, MAX_REQUEST
from vdkit.wire.nfc.records import Opcode, OpenReply

if TYPE_CHECKING:
    from vdkit.net.budget import Lease

__all__ = [
    "DEFAULT_WINDOW",
    "FAR_REQUEST_SIZE",
    "MAX_IN_FLIGHT",
    "NEAR_REQUEST_SIZE",
    "CompressionName",
    "Mode",
    "NfcDisk",
    "NfcTarget",
    "Timeouts",
    "open_nfc",
]

_SECTOR_SIZES = (512, 4096)
#: Seconds to wait for the reply that hosts send after they refused an OPEN. Nothing depends on it.
_TWIN = 2.0


def open_nfc(
    target: NfcTarget,
    *,
    mode: Mode = "nbdssl",
    writable: bool = False,
    compression: CompressionName = "none",
    window: int = DEFAULT_WINDOW,
    request_size: int | None = None,
    buffer_size: int | None = None,
    buffer_count: int | None = None,
    timeouts: Timeouts | None = None,
    lease: Lease | None = None,
    adapt: bool = True,
    sleep: Callable[[float], None] = time.sleep,
    jitter: Callable[[], float] = random.random,
) -> NfcDisk:
    """Open the disk; this uses up the target's ticket.

    ``window``: requests of ``request_size`` bytes in flight, at most :data:`MAX_IN_FLIGHT` bytes together.
    ``request_size`` None: chosen by how far the host is. ``buffer_size`` (bytes) and ``buffer_count`` are
    what is asked of the host; it may grant smaller ones. ``lease`` holds the host's memory for requests in
    flight; the disk owns it from this call on. ``adapt`` False: a request that is refused for want of memory
    fails its call at once; True: it is tried again, smaller and after a pause (``sleep``, ``jitter``).
    """
    try:
        _check(mode, window, request_size)
        buffers = _buffers(buffer_size, buffer_count, request_size or NEAR_REQUEST_SIZE)
        fixed = None if compression == "auto" else Compressing(compression_of(compression))
        timeouts = timeouts or Timeouts()
        stream = open_stream(target, mode, timeouts)
    except BaseException:
        if lease is not None:
            lease.close()
        raise
    session = Session(stream, target.where, target.path, window=window, timeouts=timeouts, lease=lease)
    try:
        fragment, trip = _say_hello(session, buffers, timeouts)
        reply = _open(session, target, writable, timeouts)
    except BaseException:
        session.close()
        raise
    name, far = f"{target.where} {target.path}", trip >= FAR_SECONDS
    return NfcDisk(
        session,
        target,
        reply,
        writable=writable,
        compressing=fixed or AutoCompressing(name, far=far),
        fragment=fragment,
        pace=Pace(
            name,
            size=request_size or (FAR_REQUEST_SIZE if far else NEAR_REQUEST_SIZE),
            in_flight=MAX_IN_FLIGHT,
            told=session.limit_in_flight,
            adapt=adapt,
            sleep=sleep,
            jitter=jitter,
        ),
        timeouts=timeouts,
    )


def _check(mode: str, window: int, request_size: int | None) -> None:
    if mode not in get_args(Mode):
        raise UsageError(f"NFC mode {mode!r} is not known", remedy="use nbd or nbdssl")
    if window < 1:
        raise UsageError(f"a window of {window} requests: at least one is needed")
    if request_size is None:
        return
    if request_size % max(_SECTOR_SIZES) or not 0 < request_size <= MAX_REQUEST:
        raise UsageError(
            f"a request size of {request_size} bytes: a multiple of {max(_SECTOR_SIZES)} "
            f"up to {MAX_REQUEST} is needed"
        )


def _buffers(size: int | None, count: int | None, request_size: int) -> tuple[int, int]:
    """Size and count of the buffers to ask for. Raises UsageError."""
    if size is None:
        size = -(-request_size // BUFFER_UNIT) * BUFFER_UNIT
    if count is None:
        count = max(1, min(HELLO_BUFFERS, MAX_HELLO_TOTAL // max(1, size)))
    if size < BUFFER_UNIT or size % BUFFER_UNIT or count < 1 or size * count > MAX_HELLO_TOTAL:
        raise UsageError(
            f"{count} NFC buffers of {size} bytes: multiples of {BUFFER_UNIT} bytes, "
            f"{MAX_HELLO_TOTAL} in all, are possible"
        )
    return size, count


def _say_hello(session: Session, buffers: tuple[int, int], timeouts: Timeouts) -> tuple[int, float]:
    """Open the record session; the largest chunk that was agreed on (bytes), and a round trip (seconds)."""
    granted = next(
        size for size, hello in _hellos(*buffers, timeouts) if session.exchange(hello).refused is None
    )
    trips = []
    for opcode, encode in (
        (Opcode.SOCKOPTS, records.encode_sockopts),
        (Opcode.RESPOOL, records.encode_respool),
    ):
        start = time.monotonic()
        session.exchange(
            Exchange(opcode, f"opening the session ({opcode.name})", encode, seconds=timeouts.request)
        )
        trips.append(time.monotonic() - start)
    return granted, min(trips)


def _hellos(size: int, count: int, timeouts: Timeouts) -> Iterator[tuple[int, Exchange]]:
    """What to ask for in turn, until the host agrees: half as much each time, and what every host grants."""
    phase = "negotiating buffers (HELLO)"
    while size >= BUFFER_UNIT:
        build = partial(records.encode_hello, buffer_size=size, buffer_count=count)
        yield size, Exchange(Opcode.HELLO, phase, build, seconds=timeouts.request, fatal=False)
        size = size // 2 // BUFFER_UNIT * BUFFER_UNIT
    build = partial(records.encode_hello)
    yield DEFAULT_HELLO_BUFFER, Exchange(Opcode.HELLO, phase, build, seconds=timeouts.request)


def _open(session: Session, target: NfcTarget, writable: bool, timeouts: Timeouts) -> OpenReply:
    phase = f"opening the disk for {'writing' if writable else 'reading'}"
    done = session.exchange(
        Exchange(
            Opcode.OPEN,
            phase,
            partial(records.encode_open, path=target.path, writable=writable),
            seconds=timeouts.request,
            fatal=False,
        )
    )
    try:
        if done.refused is not None:
            # Both of them are read, as other clients do, before the session is ended in good order.
            with contextlib.suppress(TransportError):
                session.await_twin(min(_TWIN, timeouts.close))
                session.exchange(end_request(timeouts.close))
            raise done.refused
        return _checked(records.decode_open_reply(done.payload))
    except TransportError as error:
        raise in_phase(error, target.where, f"while {phase} (disk {target.path})") from error


def _checked(reply: OpenReply) -> OpenReply:
    if reply.status != 0:
        raise HostError(f"the host answered OPEN with status {reply.status}")
    if reply.file_type != records.FILE_TYPE_DISK:
        raise ProtocolError(f"the host opened something of file type {reply.file_type} instead of a disk")
    if reply.capacity > MAX_CAPACITY:
        raise ProtocolError(f"the host announced a capacity of {reply.capacity} bytes")
    if reply.sector_size not in _SECTOR_SIZES:
        raise ProtocolError(f"the host announced sectors of {reply.sector_size} bytes")
    return reply
