"""Where a connection leads to, and the log-in to it.

Source of the shape: the published VDDK programming guide (VixDiskLibConnectParams).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from vdkit.disklib.configuration import Configuration
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.vsphere.fcd import DiskSpec
from vdkit.vsphere.session import DEFAULT_PATIENCE, DEFAULT_PORT, DEFAULT_TIMEOUT, Session

#: Keys of a configuration file that bound waits of the control plane too.
_REQUEST_KEY: Final = "vixDiskLib.nfc.RequestTimeoutMs"
_ACCEPT_KEY: Final = "vixDiskLib.nfc.AcceptTimeoutMs"


@dataclass(frozen=True, slots=True)
class ConnectParams:
    """Where to log in, and the machine whose disks will be opened.

    ``vm`` takes every form of vmxSpec, and more: ``moref=vm-16``, ``path.vmx?dcPath=DC&dsName=store``,
    ``[store] path.vmx``, a name, an inventory path, a UUID. ``snapshot`` (an id such as ``snapshot-47``, or a
    name) gives the disks that it froze, to be read only. ``fcd`` names a first-class disk in place of ``vm``.
    ``cookie`` is that of a session somebody else opened, in place of ``user`` and ``password``. ``timeout``
    in seconds holds for every answer of the control plane, None as the configuration says.
    """

    host: str
    user: str
    password: Secret = field(repr=False)
    trust: Trust
    vm: str
    port: int = DEFAULT_PORT
    timeout: float | None = None
    cookie: Secret | None = field(default=None, repr=False)
    snapshot: str | None = None
    fcd: DiskSpec | None = None
    legacy_tls: bool = False


def open_session(params: ConnectParams, configuration: Configuration | None) -> Session:
    """Logged in, or taken over; every wait has the bound that was given or configured."""
    timeout, patience = params.timeout, DEFAULT_PATIENCE
    if configuration is not None:
        if timeout is None and _REQUEST_KEY in configuration.given:
            timeout = configuration.numbers[_REQUEST_KEY] / 1000
        patience = configuration.numbers[_ACCEPT_KEY] / 1000
    if timeout is None:
        timeout = DEFAULT_TIMEOUT
    if params.cookie is not None:
        return Session.from_cookie(
            params.host,
            params.port,
            params.cookie,
            params.trust,
            timeout=timeout,
            patience=patience,
            legacy_tls=params.legacy_tls,
        )
    return Session.login(
        params.host,
        params.port,
        params.user,
        params.password,
        params.trust,
        timeout=timeout,
        patience=patience,
        legacy_tls=params.legacy_tls,
    )
