"""The one place where pyVmomi's faults, HTTP, TLS and socket errors become errors of vdkit.

Sources: the published vSphere Web Services API reference (fault types and their fields), the Python standard
library's exceptions, and reports of users on what hosts answer in practice.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from xml.parsers.expat import ExpatError

from pyVmomi import vim, vmodl

from vdkit.errors import (
    AlreadyExists,
    ChangeTrackingError,
    ConnectFailed,
    ConnectionLost,
    ConnectionRefused,
    ControlError,
    DeadlineExceeded,
    DiskFull,
    HostNotFound,
    LoginFailed,
    NoPrivilege,
    NotFound,
    NotSupported,
    ObjectBusy,
    ObjectNotFound,
    ProtocolError,
    SessionExpired,
    SnapshotFailed,
    TrackingOff,
    TrackingReset,
    TrustError,
    UsageError,
    VixError,
)
from vdkit.net.trust import refusal_remedy

#: What may come out of a call of pyVmomi besides our own errors.
FOREIGN: Final = (vmodl.MethodFault, OSError, http.client.HTTPException, ExpatError)
#: Characters of a server's own text that are repeated in a message.
MAX_DETAIL: Final = 400

_FIREWALL = "check that TCP {port} of the host is open from here"
_NO_CHANGE_IDS = "enable change tracking for the machine and take a full backup"

#: Most special first: the first type that fits decides. The remedy may be None.
_KINDS: Final[tuple[tuple[Any, type[VixError], str | None], ...]] = (
    (vim.fault.PasswordExpired, LoginFailed, "change the password of this account first"),
    (
        vim.fault.InvalidLogin,
        LoginFailed,
        "check the user name and the password; hosts say the same for an account that they have locked",
    ),
    (vim.fault.NotAuthenticated, SessionExpired, "log in again"),
    (
        vmodl.fault.ManagedObjectNotFound,
        ObjectNotFound,
        "it was deleted or unregistered; list the machines again",
    ),
    (
        vim.fault.TaskInProgress,
        ObjectBusy,
        "another task is running on it; try again when that one has ended",
    ),
    (vim.fault.ConcurrentAccess, ObjectBusy, "somebody else changed it at the same time; try again"),
    (vim.fault.ResourceInUse, ObjectBusy, "it is in use; try again later"),
    (
        vim.fault.FileLocked,
        ObjectBusy,
        "the file is in use; power the machine off or wait for the other program",
    ),
    (vim.fault.DuplicateName, AlreadyExists, "choose another name"),
    (vim.fault.AlreadyExists, AlreadyExists, "choose another name"),
    (vim.fault.FileAlreadyExists, AlreadyExists, "choose another name or delete the file first"),
    (vim.fault.FileNotFound, NotFound, None),
    (vim.fault.InvalidDatastorePath, NotFound, "check the name of the datastore and the path"),
    (vim.fault.NotFound, ObjectNotFound, "it is not there (any more)"),
    (vim.fault.NoDiskSpace, DiskFull, "free space on the datastore or choose another one"),
    (vim.fault.InvalidName, UsageError, "choose another name"),
    (vim.fault.SnapshotFault, SnapshotFailed, None),
    (vmodl.fault.MethodNotFound, NotSupported, "this server does not have that call"),
    (vmodl.fault.NotSupported, NotSupported, None),
    (vmodl.fault.NotImplemented, NotSupported, None),
    (vim.fault.NotSupportedHost, NotSupported, None),
    (
        vmodl.fault.HostNotConnected,
        ControlError,
        "its ESXi host is not connected to vCenter: reconnect it there, or log in to it directly",
    ),
    (
        vmodl.fault.HostNotReachable,
        ControlError,
        "vCenter does not reach its ESXi host: check its power and network",
    ),
    (
        vim.fault.InvalidHostState,
        ControlError,
        "its ESXi host is in maintenance mode or disconnected: end that first",
    ),
)
_LICENCE_REMEDY = (
    "the free ESXi licence only lets programs read; changing anything needs an evaluation or paid licence"
)


def translate(error: BaseException, *, where: str, what: str) -> VixError:
    """The error of vdkit for ``error``; ``where`` is ``host:port``, ``what`` is the act and its object."""
    if isinstance(error, VixError):
        return error
    if isinstance(error, vmodl.MethodFault):
        return _from_fault(error, f"{where}: {what}")
    return _from_network(error, where, what)


@contextmanager
def translating(where: str, what: str) -> Iterator[None]:
    """Raise every foreign error of the block as one of ours, the cause kept."""
    try:
        yield
    except FOREIGN as error:
        raise translate(error, where=where, what=what) from error


def is_quiesce_failure(error: VixError) -> bool:
    """True if a snapshot failed because the guest could not be brought to rest."""
    fault = error.__cause__
    return isinstance(
        fault,
        (vim.fault.ApplicationQuiesceFault, vim.fault.FilesystemQuiesceFault, vim.fault.ToolsUnavailable),
    )


def from_area_query(
    error: vmodl.MethodFault, *, where: str, what: str, offset: int, capacity: int
) -> VixError:
    """The error for a refused QueryChangedDiskAreas that asked from ``offset`` of ``capacity`` bytes.

    Hosts say "this id means nothing to me" in several ways; none of them may look like an empty answer.
    """
    prefix = f"{where}: {what}"
    detail = _detail(error)
    reset = "take a full backup, or compare the whole disk with the last one"
    if isinstance(error, vim.fault.FileLocked):
        return translate(error, where=where, what=what)
    if isinstance(error, vim.fault.FileFault):
        return TrackingReset(
            f"{prefix}: the host does not know the saved change id any more ({detail})", remedy=reset
        )
    if isinstance(error, vmodl.fault.InvalidArgument):
        match _property(error):
            case "changeId":
                return TrackingReset(
                    f"{prefix}: the host refuses the saved change id ({detail})", remedy=reset
                )
            case "deviceKey":
                return TrackingOff(
                    f"{prefix}: the host tracks no changes of this disk ({detail})", remedy=_NO_CHANGE_IDS
                )
            case "startOffset":
                return TrackingReset(
                    f"{prefix}: the host stopped describing the changes at byte {offset} of {capacity} "
                    f"({detail})",
                    remedy=reset,
                )
            case _:
                return ChangeTrackingError(f"{prefix}: {detail}")
    if isinstance(error, (vim.fault.NotFound, vmodl.fault.NotSupported, vmodl.fault.MethodNotFound)):
        return TrackingOff(f"{prefix}: change tracking is not available ({detail})", remedy=_NO_CHANGE_IDS)
    return translate(error, where=where, what=what)


def _from_fault(fault: vmodl.MethodFault, prefix: str) -> VixError:
    detail = _detail(fault)
    # NotAuthenticated is declared as a kind of NoPermission.
    if isinstance(fault, vim.fault.NoPermission) and not isinstance(fault, vim.fault.NotAuthenticated):
        return _no_privilege(fault, prefix)
    if (
        isinstance(fault, (vim.fault.RestrictedVersion, vim.fault.LicenseExpired))
        or "prohibit" in detail.lower()
    ):
        return ControlError(f"{prefix}: {detail}", remedy=_LICENCE_REMEDY)
    if isinstance(fault, vim.fault.InvalidPowerState):
        needed = fault.requestedState or "in another state"
        return ControlError(f"{prefix}: the machine is {fault.existingState}, but must be {needed}")
    if isinstance(fault, vmodl.fault.InvalidArgument):
        return ControlError(
            f"{prefix}: the host refuses the value of {_property(fault) or 'a parameter'} ({detail})"
        )
    if isinstance(fault, vmodl.fault.ManagedObjectNotFound) and fault.obj is not None:
        detail = f"{fault.obj._GetMoId()} does not exist"
    elif isinstance(fault, vim.fault.FileFault) and fault.file and fault.file not in detail:
        detail = f"{detail} ({fault.file})"
    elif isinstance(fault, vim.fault.GenericVmConfigFault) and fault.reason:
        detail = f"{detail} ({fault.reason})"
    if isinstance(fault, vim.fault.InvalidLogin | vim.fault.HostConnectFault | vmodl.fault.SystemError):
        special = _login_refused(prefix, detail)
        if special is not None:
            return special
    for kind, error, remedy in _KINDS:
        if isinstance(fault, kind):
            return error(f"{prefix}: {detail}", remedy=remedy)
    return ControlError(f"{prefix}: {detail}")


def _login_refused(prefix: str, detail: str) -> LoginFailed | None:
    """What hosts say only in words about a login: the account is locked, or there are too many sessions."""
    words = detail.lower()
    if "session" in words and re.search(r"maximum|exceed|too many|limit", words):
        return LoginFailed(
            f"{prefix}: the host's limit of sessions is reached ({detail})",
            remedy="end idle sessions at the host, or wait until they expire",
        )
    if "locked" in words and "account" in words:
        return LoginFailed(
            f"{prefix}: the account is locked ({detail})",
            remedy="wait until the host unlocks it (15 minutes by default) or ask the administrator; every "
            "further attempt may lengthen it",
        )
    return None


def _no_privilege(fault: Any, prefix: str) -> NoPrivilege:
    missing = {fault.privilegeId} if fault.privilegeId else set()
    objects = {fault.object._GetMoId()} if fault.object is not None else set()
    for entity in getattr(fault, "missingPrivileges", None) or ():
        objects.add(entity.entity._GetMoId())
        missing.update(entity.privilegeIds)
    privilege = ", ".join(sorted(missing)) or "a privilege that the host does not name"
    on = f" on {', '.join(sorted(objects))}" if objects else ""
    return NoPrivilege(
        f"{prefix}: the account lacks {privilege}{on}",
        remedy=f"ask the administrator to add {privilege} to the role of this account",
    )


def _property(fault: vmodl.fault.InvalidArgument) -> str | None:
    """The parameter that was refused; old hosts say it only at the end of the text."""
    name = fault.invalidProperty
    if not name and fault.msg and ":" in fault.msg:
        name = fault.msg.split(":", 1)[1].strip().split(" ", 1)[0].rstrip(".")
    return name.rsplit(".", 1)[-1] if name else None


def _detail(fault: vmodl.MethodFault) -> str:
    kind = type(fault).__name__.rsplit(".", 1)[-1]
    text = " ".join((fault.msg or "").split()).rstrip(".")[:MAX_DETAIL]
    return text or kind


def _from_network(error: BaseException, where: str, what: str) -> VixError:
    prefix = f"{where}: {what}"
    firewall = _FIREWALL.format(port=where.rsplit(":", 1)[-1])
    match error:
        case ssl.SSLCertVerificationError():
            return TrustError(
                f"{prefix}: the certificate is not trusted: {_reason(error)}",
                remedy=refusal_remedy(_reason(error)),
            )
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return ConnectionLost(f"{prefix}: the host closed the TLS connection", remedy=firewall)
        case TimeoutError():
            return DeadlineExceeded(f"{prefix}: no answer in the time allowed", remedy=firewall)
        case ssl.SSLError():
            return ProtocolError(f"{prefix}: TLS failed: {_reason(error)}", remedy="is this an HTTPS port?")
        case ConnectionRefusedError():
            return ConnectionRefused(f"{prefix}: connection refused", remedy=firewall)
        case socket.gaierror():
            return HostNotFound(f"{prefix}: the name does not resolve", remedy="check the name of the host")
        case http.client.RemoteDisconnected() | http.client.IncompleteRead() | ConnectionError():
            return ConnectionLost(f"{prefix}: the host closed the connection", remedy=firewall)
        case http.client.BadStatusLine() | http.client.LineTooLong() | ExpatError():
            return ProtocolError(
                f"{prefix}: the answer is not that of a vSphere host", remedy="check host and port"
            )
        case http.client.HTTPException():
            return _from_status(_one_line(error), prefix)
        case OSError():
            return ConnectFailed(f"{prefix}: {error.strerror or _one_line(error)}", remedy=firewall)
        case _:
            return ControlError(f"{prefix}: {_one_line(error)}")


def _from_status(status: str, prefix: str) -> VixError:
    """The error for an answer in HTTP that is not of the API; ``status`` is ``503 Service Unavailable``."""
    if not status[:3].isdecimal():
        # The standard library's words for a head that is none ("got more than 100 headers").
        return ProtocolError(
            f"{prefix}: the answer is not that of a vSphere host ({status})", remedy="check host and port"
        )
    match status[:3]:
        case "407":
            return ProtocolError(
                f"{prefix}: a proxy answered that it wants to be logged in to (HTTP {status})",
                remedy="hosts are talked to directly: let this machine reach the host without a proxy",
            )
        case "401" | "403":
            return ProtocolError(
                f"{prefix}: refused before it reached the API (HTTP {status})",
                remedy="a proxy or firewall in between seems to answer: check host and port, and its rules",
            )
        case "502" | "504":
            return ConnectFailed(
                f"{prefix}: a proxy answered that it does not reach the host (HTTP {status})",
                remedy="check that the host's management service runs, and what the proxy in between does",
            )
        case "503":
            return ConnectFailed(
                f"{prefix}: the host's management service is not available (HTTP {status})",
                remedy="it may be starting or overloaded: try again in some minutes",
            )
        case _:
            return ConnectFailed(f"{prefix}: the host answered HTTP {status}", remedy="is /sdk served there?")


def _reason(error: ssl.SSLError) -> str:
    # Python sets these attributes only on errors that come from OpenSSL.
    return getattr(error, "verify_message", None) or getattr(error, "reason", None) or _one_line(error)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:MAX_DETAIL] or type(error).__name__
