"""Connections and the disks opened over them, in the shape of VixDiskLib.

A connection without parameters is local. One with parameters logs in to a vCenter or ESXi host and opens
disks of one machine by datastore path, each over its own NFC connection with its own fresh ticket.

Source of the shape: the published VDDK programming guide (ConnectEx, Open, GetTransportMode).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Final, Self

from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.forward import Forwarding
from vdkit.block.workers import CancelToken
from vdkit.disklib.opening import open_local
from vdkit.disklib.resuming import DEFAULT_ATTEMPTS, ResumingDisk
from vdkit.errors import Closed, NotFound, NotSupported, UsageError, VixError
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.transports.nfc import CompressionName as Compression
from vdkit.transports.nfc import Mode, NfcTarget, open_nfc
from vdkit.vsphere.inventory import find_machine
from vdkit.vsphere.model import VirtualDisk, VirtualMachine
from vdkit.vsphere.session import DEFAULT_PORT, DEFAULT_TIMEOUT, Session
from vdkit.vsphere.tickets import NfcTicket, disk_ticket, read_ticket

#: Modes that can be asked for, in the order of VixDiskLib; those of a remote disk that are built are opened.
KNOWN_MODES: Final = ("file", "san", "hotadd", "nbdssl", "nbd")
REMOTE_MODES: Final[tuple[Mode, ...]] = ("nbdssl", "nbd")
DEFAULT_MODES: Final = "nbdssl:nbd"


@dataclass(frozen=True, slots=True)
class ConnectParams:
    """Where to log in, and the machine whose disks will be opened (name, path, ``moref=vm-16``, UUID)."""

    host: str
    user: str
    password: Secret = field(repr=False)
    trust: Trust
    vm: str
    port: int = DEFAULT_PORT
    timeout: float = DEFAULT_TIMEOUT


@dataclass(frozen=True, slots=True)
class Retry:
    """How a remote disk comes back after a passing failure. See :class:`ResumingDisk`."""

    attempts: int = DEFAULT_ATTEMPTS
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.random
    notify: Callable[[VixError, float], None] | None = None


class OpenedDisk(Forwarding):
    """A disk and the way in which it was reached."""

    def __init__(self, inner: BlockDevice, transport_mode: str, path: str) -> None:
        super().__init__(inner)
        self._transport_mode, self._path = transport_mode, path

    @property
    def transport_mode(self) -> str:
        """``file``, ``nbd`` or ``nbdssl``: the one in use, whatever was asked for."""
        return self._transport_mode

    @property
    def path(self) -> str:
        return self._path

    @property
    def inner(self) -> BlockDevice:
        return self._inner


class Connection:
    """See the module; made by :func:`connect`. Close the disks before it."""

    def __init__(self, session: Session | None, vm: VirtualMachine | None, *, owns_session: bool) -> None:
        self._session, self._vm, self._owns = session, vm, owns_session
        self._closed = False

    @property
    def local(self) -> bool:
        return self._session is None

    @property
    def session(self) -> Session | None:
        return self._session

    @property
    def vm(self) -> VirtualMachine | None:
        return self._vm

    def open(
        self,
        path: str,
        *,
        read_only: bool = True,
        single_link: bool = False,
        transport_modes: str = DEFAULT_MODES,
        compression: Compression = "none",
        allow_paths: Sequence[str] = (),
        retry: Retry | None = None,
        cancel: CancelToken | None = None,
    ) -> OpenedDisk:
        """Open a disk with all its parents.

        Local: ``path`` is that of a VMDK or raw image; ``single_link`` leaves the parents out. Remote: a
        datastore path of the connection's machine, as its configuration or that of a snapshot names it;
        ``transport_modes`` is VixDiskLib's list, tried in order. Raises NotFound, NotSupported, and what the
        transport raises.
        """
        if self._closed:
            raise Closed("the connection has been closed")
        if self._session is None or self._vm is None:
            disk = open_local(path, writable=not read_only, single_link=single_link, allow_paths=allow_paths)
            return OpenedDisk(disk, "file", path)
        if single_link:
            raise NotSupported(
                f"{self._session.where}: {path}: a single link can only be opened in a local file"
            )
        mode = choose_mode(transport_modes)
        disk = open_remote(
            self._session,
            self._vm,
            path,
            writable=not read_only,
            mode=mode,
            compression=compression,
            retry=retry or Retry(),
            cancel=cancel,
        )
        return OpenedDisk(disk, mode, path)

    def close(self) -> None:
        """Log out, if this connection logged in. Twice is fine."""
        if not self._closed:
            self._closed = True
            if self._owns and self._session is not None:
                self._session.close()

    def __enter__(self) -> Self:
        if self._owns and self._session is not None:
            self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def connect(params: ConnectParams | None = None) -> Connection:
    """A local connection, or one to the machine of ``params``. Raises what login and finding it raise."""
    if params is None:
        return Connection(None, None, owns_session=False)
    session = Session.login(
        params.host, params.port, params.user, params.password, params.trust, timeout=params.timeout
    )
    try:
        return Connection(session, find_machine(session, params.vm), owns_session=True)
    except BaseException:
        session.close()
        raise


def connection_of(session: Session, vm: VirtualMachine) -> Connection:
    """A connection on a session that the caller keeps and closes."""
    return Connection(session, vm, owns_session=False)


def choose_mode(modes: str) -> Mode:
    """The first mode of a colon list that can open a remote disk. Raises UsageError, NotSupported."""
    asked = [mode for mode in modes.split(":") if mode]
    for mode in asked:
        if mode not in KNOWN_MODES:
            raise UsageError(f"transport mode {mode!r}: {', '.join(KNOWN_MODES)} are known")
    for mode in asked:
        for built in REMOTE_MODES:
            if mode == built:
                return built
    raise NotSupported(f"transport modes {modes!r}: none of them can open a remote disk", remedy="use nbdssl")


def open_remote(
    session: Session,
    vm: VirtualMachine,
    path: str,
    *,
    writable: bool = False,
    mode: Mode = "nbdssl",
    compression: Compression = "none",
    device_key: int | None = None,
    retry: Retry | None = None,
    cancel: CancelToken | None = None,
) -> ResumingDisk:
    """A disk of a machine over NFC, opened again with a new ticket when it fails for a passing reason.

    ``path`` is a datastore path; ``device_key`` tells which disk it belongs to, and is looked up in the
    machine's configuration for writing if it is not given.
    """
    retry = retry or Retry()
    key = device_key
    if writable and key is None:
        key = _disk_of(session, vm, path).key

    def opener() -> BlockDevice | WritableDevice:
        ticket = disk_ticket(session, vm, key, writable=True) if writable and key is not None else None
        target = _target(ticket or read_ticket(session, vm), path)
        return open_nfc(target, mode=mode, writable=writable, compression=compression)

    return ResumingDisk(
        opener,
        attempts=retry.attempts,
        sleep=retry.sleep,
        jitter=retry.jitter,
        notify=retry.notify,
        cancel=cancel,
    )


def _target(ticket: NfcTicket, path: str) -> NfcTarget:
    return NfcTarget(
        host=ticket.host,
        port=ticket.port,
        ticket=ticket.ticket,
        service=ticket.service,
        thumbprint=ticket.thumbprint,
        certificate=ticket.certificate,
        path=path,
    )


def _disk_of(session: Session, vm: VirtualMachine, path: str) -> VirtualDisk:
    for disk in vm.disks:
        if path == disk.file or path in disk.parents:
            return disk
    known = ", ".join(disk.file for disk in vm.disks) or "none"
    raise NotFound(
        f"{session.where}: {vm.name} ({vm.moref}) has no disk {path!r}", remedy=f"its disks are: {known}"
    )
