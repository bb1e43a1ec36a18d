"""Every error of vdkit, in one tree.

::

    VixError                          1   FAIL
    ├── UsageError                    3   INVALID_ARG            the caller asked for something impossible
    │   ├── OutOfRange            16007   DISK_OUTOFRANGE        outside the disk
    │   ├── Closed                 1000   INVALID_HANDLE         the object has been closed
    │   ├── ReadOnly                 11   FILE_READ_ONLY         a write to something opened for reading
    │   ├── KeyNotFound           16052   DISK_KEY_NOTFOUND      no such entry in the disk database
    │   └── NotSupported              6   NOT_SUPPORTED          this thing cannot do that
    ├── FormatError               16000   DISK_INVAL             bytes that are not what they claim to be
    │   ├── CorruptDisk           16006   DISK_NEEDSREPAIR       tables or data damaged
    │   ├── NotADisk              16063   DISK_INVALIDDISK       no known disk format
    │   ├── UnsupportedVersion    16011   DISK_UNSUPPORTEDDISKVERSION
    │   ├── BadEncoding           16061   DISK_ENCODING          descriptor text cannot be decoded
    │   ├── LimitExceeded            21   FILE_TOO_BIG           larger than a named limit allows
    │   └── ChainError            16030   DISK_INVALIDCHAIN      loops, depth, capacities
    │       ├── MissingParent     16003   DISK_PARTIALCHAIN
    │       ├── CidMismatch       16008   DISK_CID_MISMATCH
    │       ├── CapacityMismatch  16067   DISK_CAPACITY_MISMATCH
    │       ├── ParentNotAllowed  16068   DISK_PARENT_NOTALLOWED
    │       └── RootLink          16069   DISK_ATTACH_ROOTLINK   a base takes no parent
    ├── StoreError                    7   FILE_ERROR             a folder, datastore or file failed
    │   ├── NotFound                  4   FILE_NOT_FOUND
    │   ├── AlreadyExists            12   FILE_ALREADY_EXISTS
    │   ├── AccessDenied             13   FILE_ACCESS_ERROR
    │   ├── OutsideStore             22   FILE_NAME_INVALID      a name that leads out of its folder
    │   ├── FileLocked               15   FILE_ALREADY_LOCKED
    │   └── DiskFull                  8   DISK_FULL
    ├── TransportError            14010   HOST_TCP_SOCKET_ERROR  moving bytes to or from a host failed
    │   ├── ConnectFailed         18000   CANNOT_CONNECT_TO_HOST
    │   │   ├── HostNotFound      14008   HOST_SERVER_NOT_FOUND  the name does not resolve
    │   │   └── ConnectionRefused 14009   HOST_NETWORK_CONN_REFUSED
    │   ├── DeadlineExceeded      14014   HOST_SERVER_SHUTDOWN   nothing came in the time allowed
    │   ├── ConnectionLost        14011   HOST_TCP_CONN_LOST
    │   ├── TrustError            18000   CANNOT_CONNECT_TO_HOST certificate not the pinned or trusted one
    │   ├── TicketRefused            13   FILE_ACCESS_ERROR      the host did not accept the ticket
    │   ├── ProtocolError         14006   HOST_NETBLKDEV_HANDSHAKE  the peer broke the protocol
    │   ├── TooManyConnections     1002   TOO_MANY_HANDLES       as many to this host as it bears, or we allow
    │   ├── ModeUnavailable          13   FILE_ACCESS_ERROR      not in this transport mode; another may do
    │   └── HostError                 1   FAIL                   the host answered with an error of its own
    │       ├── HostAccessDenied     13   FILE_ACCESS_ERROR
    │       ├── HostFileLocked       15   FILE_ALREADY_LOCKED
    │       └── HostOutOfMemory       2   OUT_OF_MEMORY
    ├── ControlError                  1   FAIL                   vCenter or ESXi refused or failed a call
    │   ├── LoginFailed              35   AUTHENTICATION_FAIL
    │   ├── SessionExpired           26   HOST_NOT_CONNECTED
    │   ├── ObjectNotFound         4000   VM_NOT_FOUND
    │   ├── Ambiguous                41   DUPLICATE_NAME
    │   ├── ObjectBusy                5   OBJECT_IS_BUSY
    │   ├── NoPrivilege           16064   DISK_NOLICENSE         the account lacks a privilege
    │   ├── TaskFailed                1   FAIL
    │   ├── SnapshotFailed        13000   SNAPSHOT_INVAL
    │   └── ChangeTrackingError       1   FAIL
    │       ├── TrackingOff           6   NOT_SUPPORTED          enable it first
    │       └── TrackingReset         1   FAIL                   the saved id is unknown: full, scan or fail
    ├── BackupError                   1   FAIL
    │   ├── RepositoryMissing         4   FILE_NOT_FOUND
    │   ├── RepositoryLocked         15   FILE_ALREADY_LOCKED
    │   ├── PointNotFound             4   FILE_NOT_FOUND
    │   ├── PointInvalid          16000   DISK_INVAL             manifest unreadable or its files missing
    │   └── VerifyFailed          16006   DISK_NEEDSREPAIR       stored bytes differ from the manifest
    └── Cancelled                    10   CANCELLED

Each class owns a VIX code (numbers and names: VDDK programming guide and the published VixError list),
an exit code of the command line, and whether trying the same thing again may help.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple


class VixCode(NamedTuple):
    """A number of the VIX error space and its name without the ``VIX_E_`` prefix."""

    number: int
    name: str

    def __str__(self) -> str:
        return f"VIX_E_{self.name} ({self.number})"


class ExitCode:
    """Exit codes of the ``vdkit`` command. Stable; an unknown code means failure."""

    OK = 0
    FAILED = 1
    USAGE = 2
    SOURCE_INCOMPLETE = 3
    VERIFY_FAILED = 4
    FORMAT = 5
    STORE = 6
    TRANSPORT = 7
    TRUST = 8
    CONTROL = 9
    NO_REPOSITORY = 10
    LOCKED = 11
    LOGIN = 12
    CHANGE_TRACKING = 13
    INTERRUPTED = 130


class VixError(Exception):
    """Root of the tree.

    ``message`` names the thing and the place (host and port, file and offset); ``remedy``, if given, is one
    sentence on what to do about it. ``str()`` is a single line of both.
    """

    code: ClassVar[VixCode] = VixCode(1, "FAIL")
    exit_code: ClassVar[int] = ExitCode.FAILED
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        text = self.message if self.remedy is None else f"{self.message}; {self.remedy}"
        return " ".join(text.split())


class UsageError(VixError):
    code = VixCode(3, "INVALID_ARG")
    exit_code = ExitCode.USAGE


class OutOfRange(UsageError):
    code = VixCode(16007, "DISK_OUTOFRANGE")


class Closed(UsageError):
    code = VixCode(1000, "INVALID_HANDLE")


class ReadOnly(UsageError):
    code = VixCode(11, "FILE_READ_ONLY")


class KeyNotFound(UsageError):
    code = VixCode(16052, "DISK_KEY_NOTFOUND")


class NotSupported(UsageError):
    code = VixCode(6, "NOT_SUPPORTED")


class FormatError(VixError):
    code = VixCode(16000, "DISK_INVAL")
    exit_code = ExitCode.FORMAT


class CorruptDisk(FormatError):
    code = VixCode(16006, "DISK_NEEDSREPAIR")


class NotADisk(FormatError):
    code = VixCode(16063, "DISK_INVALIDDISK")


class UnsupportedVersion(FormatError):
    code = VixCode(16011, "DISK_UNSUPPORTEDDISKVERSION")


class BadEncoding(FormatError):
    code = VixCode(16061, "DISK_ENCODING")


class LimitExceeded(FormatError):
    code = VixCode(21, "FILE_TOO_BIG")


class ChainError(FormatError):
    code = VixCode(16030, "DISK_INVALIDCHAIN")


class MissingParent(ChainError):
    code = VixCode(16003, "DISK_PARTIALCHAIN")


class CidMismatch(ChainError):
    code = VixCode(16008, "DISK_CID_MISMATCH")


class CapacityMismatch(ChainError):
    code = VixCode(16067, "DISK_CAPACITY_MISMATCH")


class ParentNotAllowed(ChainError):
    code = VixCode(16068, "DISK_PARENT_NOTALLOWED")


class RootLink(ChainError):
    code = VixCode(16069, "DISK_ATTACH_ROOTLINK")


class StoreError(VixError):
    code = VixCode(7, "FILE_ERROR")
    exit_code = ExitCode.STORE


class NotFound(StoreError):
    code = VixCode(4, "FILE_NOT_FOUND")


class AlreadyExists(StoreError):
    code = VixCode(12, "FILE_ALREADY_EXISTS")


class AccessDenied(StoreError):
    code = VixCode(13, "FILE_ACCESS_ERROR")


class OutsideStore(StoreError):
    code = VixCode(22, "FILE_NAME_INVALID")


class FileLocked(StoreError):
    code = VixCode(15, "FILE_ALREADY_LOCKED")
    exit_code = ExitCode.LOCKED
    retryable = True


class DiskFull(StoreError):
    code = VixCode(8, "DISK_FULL")


class TransportError(VixError):
    code = VixCode(14010, "HOST_TCP_SOCKET_ERROR")
    exit_code = ExitCode.TRANSPORT


class ConnectFailed(TransportError):
    code = VixCode(18000, "CANNOT_CONNECT_TO_HOST")
    retryable = True


class HostNotFound(ConnectFailed):
    code = VixCode(14008, "HOST_SERVER_NOT_FOUND")
    retryable = False


class ConnectionRefused(ConnectFailed):
    code = VixCode(14009, "HOST_NETWORK_CONN_REFUSED")


class DeadlineExceeded(TransportError):
    code = VixCode(14014, "HOST_SERVER_SHUTDOWN")
    retryable = True


class ConnectionLost(TransportError):
    code = VixCode(14011, "HOST_TCP_CONN_LOST")
    retryable = True


class TrustError(TransportError):
    code = VixCode(18000, "CANNOT_CONNECT_TO_HOST")
    exit_code = ExitCode.TRUST


class TicketRefused(TransportError):
    # A ticket is single use and short-lived: a fresh one may well be accepted.
    code = VixCode(13, "FILE_ACCESS_ERROR")
    retryable = True


class ProtocolError(TransportError):
    code = VixCode(14006, "HOST_NETBLKDEV_HANDSHAKE")


class TooManyConnections(TransportError):
    # Others end: the same may work a little later.
    code = VixCode(1002, "TOO_MANY_HANDLES")
    retryable = True


class ModeUnavailable(TransportError):
    code = VixCode(13, "FILE_ACCESS_ERROR")


class HostError(TransportError):
    code = VixCode(1, "FAIL")


class HostAccessDenied(HostError):
    code = VixCode(13, "FILE_ACCESS_ERROR")


class HostFileLocked(HostError):
    code = VixCode(15, "FILE_ALREADY_LOCKED")


class HostOutOfMemory(HostError):
    code = VixCode(2, "OUT_OF_MEMORY")
    retryable = True


class ControlError(VixError):
    code = VixCode(1, "FAIL")
    exit_code = ExitCode.CONTROL


class LoginFailed(ControlError):
    code = VixCode(35, "AUTHENTICATION_FAIL")
    exit_code = ExitCode.LOGIN


class SessionExpired(ControlError):
    code = VixCode(26, "HOST_NOT_CONNECTED")
    retryable = True


class ObjectNotFound(ControlError):
    code = VixCode(4000, "VM_NOT_FOUND")


class Ambiguous(ControlError):
    code = VixCode(41, "DUPLICATE_NAME")


class ObjectBusy(ControlError):
    code = VixCode(5, "OBJECT_IS_BUSY")
    retryable = True


class NoPrivilege(ControlError):
    code = VixCode(16064, "DISK_NOLICENSE")


class TaskFailed(ControlError):
    code = VixCode(1, "FAIL")


class SnapshotFailed(ControlError):
    code = VixCode(13000, "SNAPSHOT_INVAL")


class ChangeTrackingError(ControlError):
    exit_code = ExitCode.CHANGE_TRACKING


class TrackingOff(ChangeTrackingError):
    code = VixCode(6, "NOT_SUPPORTED")


class TrackingReset(ChangeTrackingError):
    code = VixCode(1, "FAIL")


class BackupError(VixError):
    code = VixCode(1, "FAIL")


class RepositoryMissing(BackupError):
    code = VixCode(4, "FILE_NOT_FOUND")
    exit_code = ExitCode.NO_REPOSITORY


class RepositoryLocked(BackupError):
    code = VixCode(15, "FILE_ALREADY_LOCKED")
    exit_code = ExitCode.LOCKED
    retryable = True


class PointNotFound(BackupError):
    code = VixCode(4, "FILE_NOT_FOUND")


class PointInvalid(BackupError):
    code = VixCode(16000, "DISK_INVAL")


class VerifyFailed(BackupError):
    code = VixCode(16006, "DISK_NEEDSREPAIR")
    exit_code = ExitCode.VERIFY_FAILED


class Cancelled(VixError):
    code = VixCode(10, "CANCELLED")
    exit_code = ExitCode.INTERRUPTED


def from_os_error(error: OSError, what: str) -> StoreError:
    """The :class:`StoreError` for an ``OSError`` of the local system; ``what`` names the file and the act."""
    import errno

    reason = error.strerror or str(error)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return NotFound(f"{what}: {reason}", remedy="check the path")
        case errno.EEXIST:
            return AlreadyExists(f"{what}: {reason}", remedy="choose another name or remove it first")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return AccessDenied(f"{what}: {reason}", remedy="check owner and permissions")
        case errno.ENOSPC | errno.EDQUOT:
            return DiskFull(f"{what}: {reason}", remedy="free space or choose another place")
        case errno.EFBIG:
            return DiskFull(
                f"{what}: {reason} for this file system or the limit of this process (ulimit -f)",
                remedy="choose another place, or a type of several files",
            )
        case errno.EMFILE | errno.ENFILE:
            return StoreError(f"{what}: {reason}", remedy="raise the limit on open files (ulimit -n)")
        case errno.ELOOP:
            return OutsideStore(f"{what}: symbolic links are not followed")
        case errno.EAGAIN | errno.ETXTBSY | errno.EBUSY:
            return FileLocked(f"{what}: {reason}", remedy="close the program that uses it")
        case _:
            return StoreError(f"{what}: {reason}")
