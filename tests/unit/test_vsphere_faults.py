"""Every fault, HTTP, TLS and socket error becomes one line that names the thing and the remedy."""

from __future__ import annotations

import http.client
import socket
import ssl
from xml.parsers.expat import ExpatError

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pyVmomi import vim, vmodl

from vdkit import errors
from vdkit.vsphere.faults import FOREIGN, from_area_query, translate, translating
from vdkit.vsphere.hardware import escaped_name, plain_name

VM = vim.VirtualMachine("vm-16")
WHERE = "vc.example:443"
WHAT = "make snapshot 'x' of web (vm-16)"


@pytest.mark.parametrize(
    ("fault", "kind", "parts"),
    [
        (vim.fault.InvalidLogin(msg="bad"), errors.LoginFailed, ["bad", "password"]),
        (vim.fault.PasswordExpired(msg="old"), errors.LoginFailed, ["change the password"]),
        (vim.fault.NotAuthenticated(msg="not authenticated"), errors.SessionExpired, ["log in again"]),
        (
            vim.fault.NoPermission(object=VM, privilegeId="VirtualMachine.State.CreateSnapshot"),
            errors.NoPrivilege,
            ["VirtualMachine.State.CreateSnapshot", "vm-16", "role"],
        ),
        (
            vim.fault.NoPermission(
                missingPrivileges=[
                    vim.fault.NoPermission.EntityPrivileges(entity=VM, privilegeIds=["A.B", "C.D"])
                ]
            ),
            errors.NoPrivilege,
            ["A.B, C.D", "vm-16"],
        ),
        (vmodl.fault.ManagedObjectNotFound(obj=VM, msg="x"), errors.ObjectNotFound, ["vm-16 does not exist"]),
        (vim.fault.TaskInProgress(msg="busy"), errors.ObjectBusy, ["another task"]),
        (vim.fault.ConcurrentAccess(msg="c"), errors.ObjectBusy, ["try again"]),
        (vim.fault.FileLocked(msg="locked", file="[ds] a"), errors.ObjectBusy, ["[ds] a", "in use"]),
        (vim.fault.RestrictedVersion(msg="r"), errors.ControlError, ["licence"]),
        (
            vmodl.fault.SystemError(msg="Current license or ESXi version prohibits execution"),
            errors.ControlError,
            ["free ESXi licence"],
        ),
        (vim.fault.DuplicateName(msg="dup", name="x"), errors.AlreadyExists, ["another name"]),
        (vim.fault.FileAlreadyExists(msg="there", file="[ds] b"), errors.AlreadyExists, ["[ds] b"]),
        (vim.fault.FileNotFound(msg="none", file="[ds] c"), errors.NotFound, ["[ds] c"]),
        (vim.fault.NoDiskSpace(msg="full", file="[ds] d"), errors.DiskFull, ["free space"]),
        (vim.fault.TooManySnapshotLevels(msg="deep"), errors.SnapshotFailed, ["deep"]),
        (vim.fault.GenericVmConfigFault(msg="g", reason="why"), errors.ControlError, ["g", "why"]),
        (
            vim.fault.InvalidPowerState(msg="p", existingState="poweredOn", requestedState="poweredOff"),
            errors.ControlError,
            ["poweredOn", "poweredOff"],
        ),
        (vmodl.fault.InvalidArgument(msg="bad", invalidProperty="spec.name"), errors.ControlError, ["name"]),
        (vmodl.fault.MethodNotFound(msg="m", method="X"), errors.NotSupported, ["does not have that call"]),
        (vmodl.fault.NotSupported(msg="n"), errors.NotSupported, ["n"]),
        (vim.fault.Timedout(), errors.ControlError, ["Timedout"]),
        (vmodl.fault.SystemError(msg="two\nlines " + "x" * 9999), errors.ControlError, ["two lines"]),
    ],
)
def test_faults(fault: Exception, kind: type[errors.VixError], parts: list[str]) -> None:
    error = translate(fault, where=WHERE, what=WHAT)
    assert type(error) is kind
    text = str(error)
    assert "\n" not in text
    assert len(text) < 800
    for part in [WHERE, WHAT, *parts]:
        assert part in text, text


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (TimeoutError("timed out"), errors.DeadlineExceeded, "TCP 443"),
        (ConnectionRefusedError(111, "refused"), errors.ConnectionRefused, "TCP 443"),
        (socket.gaierror(-2, "unknown"), errors.HostNotFound, "check the name"),
        (ConnectionResetError(104, "reset"), errors.ConnectionLost, "TCP 443"),
        (BrokenPipeError(32, "pipe"), errors.ConnectionLost, "TCP 443"),
        (http.client.RemoteDisconnected("gone"), errors.ConnectionLost, "closed the connection"),
        (http.client.IncompleteRead(b"x"), errors.ConnectionLost, "closed the connection"),
        (http.client.BadStatusLine("SSH-2.0"), errors.ProtocolError, "check host and port"),
        (http.client.HTTPException("503 Service Unavailable"), errors.ConnectFailed, "503"),
        (ssl.SSLCertVerificationError(1, "verify"), errors.TrustError, "thumbprint"),
        (ssl.SSLEOFError(8, "eof"), errors.ConnectionLost, "TLS"),
        (ssl.SSLError(1, "wrong version number"), errors.ProtocolError, "HTTPS"),
        (ExpatError("syntax"), errors.ProtocolError, "not that of a vSphere host"),
        (OSError(101, "Network is unreachable"), errors.ConnectFailed, "Network is unreachable"),
    ],
)
def test_network_errors(error: Exception, kind: type[errors.VixError], part: str) -> None:
    assert isinstance(error, FOREIGN)
    mapped = translate(error, where=WHERE, what="connect")
    assert type(mapped) is kind
    assert WHERE in str(mapped)
    assert part in str(mapped)


def test_the_cause_is_kept_and_our_own_errors_pass() -> None:
    with pytest.raises(errors.ConnectionLost) as caught, translating(WHERE, WHAT):
        raise ConnectionResetError(104, "reset")
    assert isinstance(caught.value.__cause__, ConnectionResetError)
    with pytest.raises(errors.UsageError, match="mine"), translating(WHERE, WHAT):
        raise errors.UsageError("mine")


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (vim.fault.FileFault(msg="x", file="f"), errors.TrackingReset),
        (vim.fault.FileNotFound(msg="x", file="f"), errors.TrackingReset),
        (vim.fault.FileLocked(msg="x", file="f"), errors.ObjectBusy),
        (vmodl.fault.InvalidArgument(invalidProperty="changeId"), errors.TrackingReset),
        (vmodl.fault.InvalidArgument(invalidProperty="startOffset"), errors.TrackingReset),
        (vmodl.fault.InvalidArgument(invalidProperty="deviceKey"), errors.TrackingOff),
        (
            vmodl.fault.InvalidArgument(msg="A specified parameter was not correct: deviceKey (lost)"),
            errors.TrackingOff,
        ),
        (vmodl.fault.InvalidArgument(invalidProperty="other"), errors.ChangeTrackingError),
        (vim.fault.NotFound(), errors.TrackingOff),
        (vmodl.fault.NotSupported(), errors.TrackingOff),
        (vim.fault.NotAuthenticated(), errors.SessionExpired),
        (vim.fault.NoPermission(object=VM, privilegeId="p"), errors.NoPrivilege),
    ],
)
def test_faults_of_the_area_query(fault: vmodl.MethodFault, kind: type[errors.VixError]) -> None:
    error = from_area_query(fault, where=WHERE, what="changes of disk 2000", offset=65536, capacity=1 << 30)
    assert type(error) is kind
    assert "disk 2000" in str(error)


@given(st.text())
def test_names_survive_the_escaping_of_the_api(name: str) -> None:
    escaped = escaped_name(name)
    assert plain_name(escaped) == name
    assert "/" not in escaped
