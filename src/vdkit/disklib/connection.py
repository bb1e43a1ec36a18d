"""Connections and the disks opened over them, in the shape of VixDiskLib.

A connection without parameters is local. One with parameters logs in to a vCenter or ESXi host and opens
disks of one machine by datastore path, each over its own NFC connection with its own fresh ticket: those
that it runs with, or those that one of its snapshots froze; or one first-class disk, by its id.

Source of the shape: the published VDDK programming guide (ConnectEx, Open, GetTransportMode, vStorageObj).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vdkit.block.copy import CopyResult
from vdkit.block.workers import CancelToken
from vdkit.disklib import hosted
from vdkit.disklib.configuration import Configuration
from vdkit.disklib.constants import DiskType, OpenFlags, check_flags, compression_name
from vdkit.disklib.filehandle import open_file_handle
from vdkit.disklib.handle import DiskHandle, Progress
from vdkit.disklib.hostdisks import HostDisks
from vdkit.disklib.hosted import CreateParams
from vdkit.disklib.login import ConnectParams, open_session
from vdkit.disklib.remote import Retry
from vdkit.errors import ChainError, Closed, NotSupported, UsageError
from vdkit.net.budget import HostBudgets
from vdkit.transports.nfc import CompressionName as Compression
from vdkit.vsphere import fcd
from vdkit.vsphere.fcd import DiskSpec, FirstClassDisk
from vdkit.vsphere.inventory import at_snapshot, find_machine
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.session import Session

if TYPE_CHECKING:
    from vdkit.vmdk.check import CheckReport

__all__ = ["ConnectParams", "Connection", "connect", "connection_of"]


class Connection:
    """See the module; made by :func:`connect`. Close the disks before it."""

    def __init__(
        self,
        session: Session | None,
        vm: VirtualMachine | None,
        *,
        owns_session: bool,
        configuration: Configuration | None = None,
        snapshot: str | None = None,
        disk: FirstClassDisk | None = None,
    ) -> None:
        """``snapshot``: ``vm`` is the machine as that snapshot froze it. ``disk``: the one to open."""
        self._session, self._vm, self._owns = session, vm, owns_session
        self._snapshot, self._disk = snapshot, disk
        self._configuration = configuration
        self.notes: tuple[str, ...] = () if configuration is None else configuration.warnings
        #: How the disks opened from now on share their host with other processes; None for the default.
        self.budget: HostBudgets | None = None
        self._closed = False

    @property
    def local(self) -> bool:
        return self._session is None

    @property
    def session(self) -> Session | None:
        return self._session

    @property
    def vm(self) -> VirtualMachine | None:
        """The machine: as it runs, or with the disks of the snapshot that was asked for."""
        return self._vm

    @property
    def first_class_disk(self) -> FirstClassDisk | None:
        return self._disk

    def open(
        self,
        path: str | Path,
        flags: OpenFlags | None = None,
        *,
        read_only: bool = True,
        single_link: bool = False,
        unbuffered: bool = False,
        transport_modes: str | None = None,
        compression: Compression = "none",
        allow_paths: Sequence[str] = (),
        ignore_journal: bool = False,
        retry: Retry | None = None,
        cancel: CancelToken | None = None,
    ) -> DiskHandle:
        """Open a disk with all its parents.

        ``flags`` are VixDiskLib's, in place of the four keywords that say the same: without READ_ONLY the
        disk is opened for writing. Local: ``path`` is that of a VMDK or raw image; ``single_link`` leaves the
        parents out; ``unbuffered`` goes past the page cache where the file system can, and the handle's
        ``notes`` say where it cannot. Remote: a datastore path of the connection's machine, as its
        configuration or that of a snapshot names it; ``transport_modes`` is VixDiskLib's list, tried in
        order, None the default for where we run; the handle says which it became, and its ``notes`` which
        failed before. A first-class disk is opened by its path or by an empty one. Raises NotFound,
        NotSupported, ReadOnly for writing to what a snapshot froze, HostFileLocked for the link that a
        machine writes to just then, ModeUnavailable if no mode can be used, and what the transport raises.
        """
        if flags is not None:
            if not read_only or single_link or unbuffered or compression != "none":
                raise UsageError("open: say it with flags or with keywords, not with both")
            check_flags(flags)
            read_only = OpenFlags.READ_ONLY in flags
            single_link = OpenFlags.SINGLE_LINK in flags
            unbuffered = OpenFlags.UNBUFFERED in flags
        self._check_open()
        if self._session is None:
            return open_file_handle(
                path,
                writable=not read_only,
                single_link=single_link,
                unbuffered=unbuffered,
                allow_paths=allow_paths,
                ignore_journal=ignore_journal,
            )
        if flags is not None:
            compression = compression_name(flags)
        if single_link:
            raise NotSupported(
                f"{self._session.where}: {path}: a single link can only be opened in a local file"
            )
        disks = HostDisks(self._session, self._vm, snapshot=self._snapshot, disk=self._disk)
        return disks.open(
            str(path),
            transport_modes,
            writable=not read_only,
            compression=compression,
            configuration=self._configuration,
            retry=retry,
            budget=self.budget,
            cancel=cancel,
        )

    # -- whole local disks -----------------------------------------------------------------------

    def create(self, path: str | Path, params: CreateParams, progress: Progress | None = None) -> None:
        """Make an empty disk; a partial one never appears. Raises AlreadyExists, LimitExceeded."""
        self._check_local("create")
        hosted.create(path, params, progress)

    def create_child(self, parent: DiskHandle, path: str | Path, disk_type: DiskType) -> None:
        """Make an empty child of an open disk, which must not be written to any more."""
        self._check_local("create a child")
        hosted.create_child(parent, path, disk_type)

    def clone(
        self,
        path: str | Path,
        source: Connection,
        source_path: str | Path,
        params: CreateParams,
        *,
        progress: Progress | None = None,
        overwrite: bool = False,
        allow_paths: Sequence[str] = (),
        cancel: CancelToken | None = None,
    ) -> CopyResult:
        """Copy a disk of ``source``, all its links as one, to the new local disk ``path``.

        Of ``params`` the type, adapter and hardware version are used. ``overwrite`` replaces a disk of that
        name, whose files go only once the new one is complete. Raises AlreadyExists, and what opening,
        reading and writing raise.
        """
        self._check_local("clone to a host")
        with source.open(source_path, allow_paths=allow_paths, cancel=cancel) as disk:
            return hosted.clone(disk, path, params, overwrite=overwrite, progress=progress, cancel=cancel)

    def grow(
        self,
        path: str | Path,
        capacity_sectors: int,
        *,
        update_geometry: bool = True,
        progress: Progress | None = None,
        cancel: CancelToken | None = None,
        allow_paths: Sequence[str] = (),
    ) -> None:
        """Make a disk that nobody has open larger. Raises UsageError for a capacity that is not larger."""
        self._check_local("grow")
        hosted.grow(
            path,
            capacity_sectors,
            update_geometry=update_geometry,
            progress=progress,
            cancel=cancel,
            allow_paths=allow_paths,
        )

    def rename(
        self,
        source: str | Path,
        target: str | Path,
        *,
        force: bool = False,
        allow_paths: Sequence[str] = (),
    ) -> None:
        """Rename or move a disk's files, that of somebody's parent with ``force`` only.

        Raises AlreadyExists, NotFound, NotSupported.
        """
        self._check_local("rename")
        hosted.rename(source, target, force=force, allow_paths=allow_paths)

    def unlink(self, path: str | Path) -> None:
        """Remove the files of a disk, not those of its parents."""
        self._check_local("remove")
        hosted.unlink(path)

    def is_attach_possible(self, parent: DiskHandle, child: DiskHandle) -> bool:
        """Whether :meth:`attach` would work; :meth:`check_attach` raises why not."""
        try:
            self.check_attach(parent, child)
        except (ChainError, NotSupported):
            return False
        return True

    def check_attach(self, parent: DiskHandle, child: DiskHandle) -> None:
        """Raises CapacityMismatch, CidMismatch, ParentNotAllowed, RootLink if they do not fit."""
        self._check_local("attach")
        hosted.check_attach(parent, child)

    def attach(self, parent: DiskHandle, child: DiskHandle) -> None:
        """Put the parent's chain under the child, opened as a single link for writing.

        The child's handle shows the whole chain afterwards. The parent's is closed, on failure too. Raises
        as :meth:`check_attach`.
        """
        self._check_local("attach")
        hosted.attach(parent, child)

    def check_repair(
        self,
        path: str | Path,
        repair: bool = False,
        *,
        allow_paths: Sequence[str] = (),
        cancel: CancelToken | None = None,
    ) -> CheckReport:
        """Check the structures of a disk that nobody has open; ``repair`` mends them in place.

        What a repair changes is kept in an undo file beside the disk. Raises CorruptDisk for a disk that is
        damaged, or still is.
        """
        self._check_local("check")
        return hosted.check_repair(path, repair=repair, allow_paths=allow_paths, cancel=cancel)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the connection has been closed")

    def _check_local(self, what: str) -> None:
        self._check_open()
        if self._session is not None:
            raise NotSupported(
                f"{self._session.where}: cannot {what} over a connection to a host",
                remedy="use a local connection: connect() without parameters",
            )

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


def connect(params: ConnectParams | None = None, *, configuration: Configuration | None = None) -> Connection:
    """A local connection, or one to the machine of ``params``. Raises what login and finding it raise.

    ``configuration`` is a file of VixDiskLib's; a connection to a host takes its time-outs, and shows what
    the file could not have its effect with in ``notes``.
    """
    if params is None:
        return Connection(None, None, owns_session=False, configuration=configuration)
    session = open_session(params, configuration)
    try:
        if params.fcd is not None:
            return _connect_disk(session, params, params.fcd, configuration)
        vm = find_machine(session, params.vm)
        if params.snapshot is not None:
            vm = at_snapshot(session, vm, params.snapshot)
        return Connection(
            session, vm, owns_session=True, configuration=configuration, snapshot=params.snapshot
        )
    except BaseException:
        session.close()
        raise


def _connect_disk(
    session: Session, params: ConnectParams, spec: DiskSpec, configuration: Configuration | None
) -> Connection:
    """An attached disk goes through its machine, with whose tickets it opens; one that is not, by itself."""
    if params.vm or params.snapshot:
        raise UsageError(
            "a first-class disk is given instead of a machine and its snapshot",
            remedy="leave vm empty; a snapshot of the disk goes into its DiskSpec",
        )
    disk = fcd.get_disk(session, spec)
    vm = fcd.machine_of(session, disk)
    return Connection(session, vm, owns_session=True, configuration=configuration, disk=disk)


def connection_of(session: Session, vm: VirtualMachine) -> Connection:
    """A connection on a session that the caller keeps and closes."""
    return Connection(session, vm, owns_session=False)
