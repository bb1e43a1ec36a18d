"""The disks of a host, of one machine as it runs or as a snapshot froze it, or one first-class disk.

What may be opened, with whose ticket, in which of the modes; and what a refusal means where it is about the
link that a machine writes to.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from vdkit.block.workers import CancelToken
from vdkit.disklib.configuration import Configuration
from vdkit.disklib.handle import DiskHandle
from vdkit.disklib.info import remote_info
from vdkit.disklib.modes import open_in_modes, subject_of
from vdkit.disklib.remote import Retry, open_remote
from vdkit.errors import HostAccessDenied, HostError, HostFileLocked, NotFound, ReadOnly, VixError
from vdkit.net.budget import HostBudgets
from vdkit.transports.nfc import CompressionName as Compression
from vdkit.vsphere.fcd import FirstClassDisk
from vdkit.vsphere.inventory import get_machine
from vdkit.vsphere.model import Power, VirtualMachine
from vdkit.vsphere.session import Session
from vdkit.vsphere.tickets import NfcTicket, datastore_ticket


class HostDisks:
    """See the module. ``snapshot``: ``vm`` is the machine as that one froze it. ``disk``: the one to open."""

    def __init__(
        self,
        session: Session,
        vm: VirtualMachine | None,
        *,
        snapshot: str | None,
        disk: FirstClassDisk | None,
    ) -> None:
        self._session, self._vm = session, vm
        self._snapshot, self._disk = snapshot, disk

    def open(
        self,
        path: str,
        modes: str | None,
        *,
        writable: bool,
        compression: Compression,
        configuration: Configuration | None,
        retry: Retry | None,
        budget: HostBudgets | None,
        cancel: CancelToken | None,
    ) -> DiskHandle:
        """As :meth:`vdkit.disklib.connection.Connection.open`, for a disk of a host."""
        path = self._path(path, writable=writable)
        open_one = partial(
            open_remote,
            self._session,
            self._vm,
            path,
            tickets=self._tickets(),
            writable=writable,
            compression=compression,
            retry=retry or Retry(),
            timeouts=None if configuration is None else configuration.timeouts,
            buffer_size=None if configuration is None else configuration.buffer_size,
            buffer_count=None if configuration is None else configuration.buffer_count,
            budget=budget,
            cancel=cancel,
        )
        subject = subject_of(self._vm, path, writable=writable)
        try:
            opened = open_in_modes(modes, subject, lambda mode: open_one(mode=mode))
        except (HostFileLocked, HostAccessDenied) as error:
            raise self._refused(path, error) from error
        disks = () if self._vm is None else self._vm.disks
        known = next((d for d in disks if path == d.file or path in d.parents), None)
        return DiskHandle(
            opened.device,
            opened.mode,
            path,
            describe=partial(remote_info, disk=known, path=path),
            notes=opened.notes,
        )

    def _path(self, text: str, *, writable: bool) -> str:
        """The datastore path to open, after what is not allowed has been refused."""
        disk = self._disk
        if disk is not None:
            if text not in ("", ".", disk.file):
                raise NotFound(
                    f"{self._session.where}: the first-class disk {disk.id} is {disk.file}, not {text!r}"
                )
            text = disk.file
        frozen = self._snapshot or (None if disk is None else disk.snapshot)
        if frozen is not None and writable:
            raise ReadOnly(
                f"{self._session.where}: {text}: what snapshot {frozen} froze is only read",
                remedy="connect without the snapshot to write to the machine's own disk",
            )
        return text

    def _tickets(self) -> Callable[[], NfcTicket] | None:
        """For a first-class disk that no machine has: a ticket for its datastore. Else the machine's."""
        disk = self._disk
        if disk is None or self._vm is not None:
            return None
        return partial(datastore_ticket, self._session, disk.datastore, f"open first-class disk {disk.id}")

    def _refused(self, path: str, error: HostError) -> HostError:
        """The host's refusal, with what helps where it is about the link that the machine writes to."""
        if self._vm is None:
            return error
        try:
            now = get_machine(self._session, self._vm.moref)
        except VixError:
            return error
        if now.power is Power.OFF or not any(disk.file == path for disk in now.disks):
            return error
        known = ", ".join(f"{one.moref} ({one.name})" for one in now.all_snapshots())
        return type(error)(
            f"{error.message}: {now.name} ({now.moref}) is running and writes to this link",
            remedy=f"pass the snapshot whose disks are wanted: it has {known}"
            if known
            else "make a snapshot, and pass it: what it froze can be read",
        )
