"""A session with a simulated host, for the tests beside this file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vdkit.errors import VixError
from vdkit.net.trust import Trust
from vdkit.sim.host import SimulatedHost
from vdkit.vsphere.inventory import find_machine
from vdkit.vsphere.model import VirtualMachine
from vdkit.vsphere.session import Session


@contextmanager
def logged_in(server: SimulatedHost) -> Iterator[Session]:
    """A session that does not wait between its looks at the host."""
    trust = Trust(sha256=server.thumbprint_sha256)
    with Session.login(
        server.host, server.port, server.user, server.password, trust, sleep=lambda seconds: None
    ) as session:
        yield session


def the_machine(session: Session, name: str = "vm1") -> VirtualMachine:
    return find_machine(session, name)


def one_line(error: VixError, *parts: str) -> None:
    """The error is one line, and holds the parts."""
    text = str(error)
    assert "\n" not in text
    for part in parts:
        assert part in text, text
