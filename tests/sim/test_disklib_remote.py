"""Disks of the simulated host through the kit's own API: opened by path, resumed with new tickets."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator

import pytest
from simulated_login import logged_in, one_line, the_machine

from vdkit.block.compare import compare
from vdkit.block.copy import copy
from vdkit.block.memory import MemoryDevice
from vdkit.disklib.connection import ConnectParams, connect, connection_of
from vdkit.disklib.modes import choose_modes
from vdkit.disklib.remote import Retry, open_remote
from vdkit.errors import (
    Closed,
    HostFileLocked,
    LoginFailed,
    ModeUnavailable,
    NotFound,
    NotSupported,
    ReadOnly,
    TransportError,
    UsageError,
    VixError,
)
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.sim.host import SimulatedHost
from vdkit.testing.fixtures import DISK_BYTES
from vdkit.vsphere import snapshots
from vdkit.vsphere.session import Session

MIB = 1 << 20


@pytest.fixture
def session(simulated_host: SimulatedHost) -> Iterator[Session]:
    with logged_in(simulated_host) as session:
        yield session


def params(host: SimulatedHost, **changes: object) -> ConnectParams:
    fields: dict[str, object] = {
        "host": host.host,
        "port": host.port,
        "user": host.user,
        "password": host.password,
        "trust": Trust(sha1=host.thumbprint_sha1),
        "vm": "vm1",
        **changes,
    }
    return ConnectParams(**fields)  # type: ignore[arg-type]


def pattern(seed: int) -> bytes:
    return random.Random(seed).randbytes(MIB)


@pytest.mark.parametrize("modes", ["nbdssl", "nbd", "san:hotadd:nbdssl:nbd"])
def test_write_and_read_back(simulated_host: SimulatedHost, modes: str) -> None:
    with connect(params(simulated_host)) as connection:
        assert connection.vm is not None
        assert not connection.local
        path = connection.vm.disks[0].file
        with connection.open(path, read_only=False, transport_modes=modes) as disk:
            assert disk.transport_mode in modes
            assert (disk.capacity, disk.path) == (DISK_BYTES, path)
            disk.write_many([(offset * MIB, pattern(offset)) for offset in (0, 5, 63)])
            disk.flush()
        with connection.open(path, transport_modes=modes) as disk:
            for offset in (0, 5, 63):
                found = bytearray(MIB)
                disk.read_into(offset * MIB, found)
                assert found == pattern(offset)
            with pytest.raises(ReadOnly):
                disk.write_from(0, b"x" * 512)


def test_a_snapshot_of_a_running_machine_is_read_whole(
    simulated_host: SimulatedHost, session: Session
) -> None:
    simulated_host.power_on_all()
    guest = simulated_host.machine("vm1").disk(2000).guest()
    guest.write_from(0, pattern(1))
    vm = the_machine(session)
    with snapshots.temporary_snapshot(session, vm, "vdkit b", "vdkit:r") as taken:
        expected = MemoryDevice(DISK_BYTES)
        copy(guest, expected)
        guest.write_from(0, pattern(2))
        assert taken.moref
        with open_remote(session, vm, vm.disks[0].file) as disk:
            assert compare(expected, disk) is None
        running = the_machine(session).disks[0].file
        with pytest.raises(HostFileLocked) as caught:
            open_remote(session, vm, running)
        one_line(caught.value, f":{simulated_host.nfc_port}", running)


def test_a_cut_connection_is_resumed_with_a_new_ticket(
    simulated_host: SimulatedHost, session: Session
) -> None:
    vm = the_machine(session)
    heard: list[str] = []
    retry = Retry(sleep=lambda s: None, notify=lambda error, s: heard.append(str(error)))
    with open_remote(session, vm, vm.disks[0].file, writable=True, retry=retry) as disk:
        for number in range(4):
            disk.write_from(number * MIB, pattern(number))
            # Both ways at once: the data port ends every session, and so does the control plane.
            simulated_host.data_port().break_connections()
            simulated_host.expire_sessions()
        digest = hashlib.sha256()
        for number in range(4):
            found = bytearray(MIB)
            disk.read_into(number * MIB, found)
            digest.update(found)
        assert disk.reopened >= 4
    assert digest.digest() == hashlib.sha256(b"".join(pattern(n) for n in range(4))).digest()
    assert len(heard) >= 4


def test_a_host_that_stays_away_is_given_up(simulated_host: SimulatedHost, session: Session) -> None:
    vm = the_machine(session)
    pauses: list[float] = []
    retry = Retry(attempts=3, sleep=pauses.append, jitter=lambda: 1.0)
    with open_remote(session, vm, vm.disks[0].file, retry=retry) as disk:
        simulated_host.data_port().stop()
        with pytest.raises(TransportError) as caught:
            disk.read_into(0, bytearray(512))
        one_line(caught.value, f":{simulated_host.nfc_port}")
    assert pauses == [0.5, 1.0]


def test_what_cannot_be_opened(simulated_host: SimulatedHost, session: Session) -> None:
    connection = connection_of(session, the_machine(session))
    path = "[datastore1] vm1/vm1.vmdk"
    cases: list[tuple[type[VixError], dict[str, object], str]] = [
        (NotSupported, {"single_link": True}, "local file"),
        (ModeUnavailable, {"transport_modes": "san:hotadd"}, "nbdssl"),
        (UsageError, {"transport_modes": "nfs"}, "known"),
    ]
    for kind, arguments, part in cases:
        with pytest.raises(kind) as caught:
            connection.open(path, **arguments)  # type: ignore[arg-type]
        one_line(caught.value, part)
    with pytest.raises(NotFound) as unknown:
        connection.open("[datastore1] vm1/other.vmdk", read_only=False)
    one_line(unknown.value, "other.vmdk", "vm1/vm1.vmdk")
    with pytest.raises(TransportError) as refused:
        connection.open("[datastore1] vm1/other.vmdk")
    one_line(refused.value, "other.vmdk")
    connection.close()
    with pytest.raises(Closed):
        connection.open(path)
    # The session was the caller's and goes on.
    assert the_machine(session)


def test_a_failed_login_leaves_nothing(simulated_host: SimulatedHost) -> None:
    with pytest.raises(LoginFailed):
        connect(params(simulated_host, password=Secret("wrong")))
    with pytest.raises(VixError, match="near names"):
        connect(params(simulated_host, vm="vm7"))
    assert "wrong" not in repr(params(simulated_host, password=Secret("wrong")))


def test_modes() -> None:
    assert choose_modes("file:san:hotadd:nbdssl:nbd").mode == "nbdssl"
    assert choose_modes("nbd:nbdssl").mode == "nbd"
    assert choose_modes(None).mode == "nbdssl"
