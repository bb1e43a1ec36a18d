"""Clients for tests of the simulated host: pyVmomi logged in, and bare HTTPS."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim

from vdkit.sim.host import SimulatedHost

MIB = 1 << 20
HEADER = '<?xml version="1.0" encoding="UTF-8"?>'
ENVELOPE = 'xmlns:soapenv="http://schemas.xmlsoap.org/soap/envelope/"'
SCHEMA = 'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance"'


@contextmanager
def logged_in(host: SimulatedHost, **options: Any) -> Iterator[Any]:
    """pyVmomi's service instance, logged in with the certificate pinned."""
    service = SmartConnect(
        host=host.host,
        port=host.port,
        user=host.user,
        pwd=host.password.reveal(),
        thumbprint=host.thumbprint_sha256.replace(":", "").lower(),
        **options,
    )
    try:
        yield service
    finally:
        Disconnect(service)


def find_vm(service: Any, name: str = "vm1") -> Any:
    content = service.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    try:
        return next(vm for vm in view.view if vm.name == name)
    finally:
        view.Destroy()


def done(task: Any) -> Any:
    """The result of a task that must succeed."""
    WaitForTask(task)
    return task.info.result


def disks(vm_or_snapshot: Any) -> list[Any]:
    return [d for d in vm_or_snapshot.config.hardware.device if isinstance(d, vim.vm.device.VirtualDisk)]


def connection(host: SimulatedHost) -> http.client.HTTPSConnection:
    """Bare HTTPS; the certificate is its own CA."""
    context = ssl.create_default_context(cadata=host.certificate.pem)
    return http.client.HTTPSConnection(host.host, host.port, timeout=30, context=context)


def envelope(inner: str) -> bytes:
    opened = f"{HEADER}<soapenv:Envelope {ENVELOPE} {SCHEMA}><soapenv:Body>"
    return f"{opened}{inner}</soapenv:Body></soapenv:Envelope>".encode()


def post(
    host: SimulatedHost, body: bytes, headers: dict[str, str] | None = None
) -> tuple[int, str, dict[str, str]]:
    """Status, text and headers of the reply to a SOAP body."""
    wire = connection(host)
    try:
        wire.request("POST", "/sdk", body, {"SOAPAction": '"urn:vim25"', **(headers or {})})
        reply = wire.getresponse()
        return reply.status, reply.read().decode(), {k.lower(): v for k, v in reply.getheaders()}
    finally:
        wire.close()


def soap_login(host: SimulatedHost) -> str:
    """The cookie of a session opened by hand-written SOAP."""
    manager = "ha-sessionmgr" if host.inventory.personality == "esx" else "SessionManager"
    inner = (
        f'<Login xmlns="urn:vim25"><_this type="SessionManager">{manager}</_this>'
        f"<userName>{host.user}</userName><password>{host.password.reveal()}</password></Login>"
    )
    status, text, headers = post(host, envelope(inner))
    assert status == 200, text
    return headers["set-cookie"].partition(";")[0]
