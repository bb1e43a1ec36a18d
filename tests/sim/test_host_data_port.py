"""A ticket asked for over SOAP opens a disk at the data port, once, and for what it was given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyVmomi import vim
from simclients import MIB, disks, done, find_vm, logged_in

from vdkit.errors import HostAccessDenied, HostError, TransportError
from vdkit.net.secret import Secret
from vdkit.sim.clock import ManualClock
from vdkit.sim.host import SimulatedHost
from vdkit.sim.nfc_faults import NfcFaults
from vdkit.transports.nfc import NfcTarget, open_nfc
from vdkit.wire.vim import internal

Factory = Callable[..., SimulatedHost]


def target(host: SimulatedHost, ticket: Any, path: str) -> NfcTarget:
    return NfcTarget(
        host=ticket.host or host.host,
        port=ticket.port,
        ticket=Secret(ticket.sessionId),
        service=ticket.service,
        thumbprint=ticket.sslThumbprint,
        certificate=None,
        path=path,
    )


def nfc_service(service: Any) -> Any:
    content = internal.retrieve_internal_content(service._stub)
    return internal.NfcService(content.nfcService, service._stub)


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
@pytest.mark.parametrize("mode", ["nbd", "nbdssl"])
def test_a_snapshot_is_read_while_the_guest_goes_on(
    personality: str, mode: Any, simulated_host_factory: Factory
) -> None:
    host = simulated_host_factory(personality=personality)
    with logged_in(host) as service:
        vm = find_vm(service)
        done(vm.PowerOn())
        guest = host.machine("vm1").disk(2000).guest()
        guest.write_from(7 * MIB, b"then" * 1024)
        snapshot = done(vm.CreateSnapshot("s", None, False, False))
        guest.write_from(7 * MIB, b"now!" * 1024)
        ticket = nfc_service(service).NfcGetVmFiles(vm=vm)
        path = disks(snapshot)[0].backing.fileName
        with open_nfc(target(host, ticket, path), mode=mode) as disk:
            content = bytearray(4096)
            disk.read_into(7 * MIB, content)
        assert content == b"then" * 1024
        with pytest.raises(TransportError):
            open_nfc(target(host, ticket, path), mode=mode)


def test_a_disk_of_a_machine_that_is_off_is_written(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        ticket = nfc_service(service).NfcRandomAccessOpenDisk(
            vm=vm, diskDeviceKey=2000, hostForAccess=vm.runtime.host
        )
        data = bytes(range(256)) * 256
        path = disks(vm)[0].backing.fileName
        with open_nfc(target(simulated_host, ticket, path), writable=True) as disk:
            disk.write_from(5 * MIB, data)
            disk.flush()
        done(vm.PowerOn())
        content = bytearray(len(data))
        simulated_host.machine("vm1").disk(2000).guest().read_into(5 * MIB, content)
        assert content == data


def test_a_read_only_ticket_does_not_write(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        ticket = nfc_service(service).NfcRandomAccessOpenReadonly(vm=vm, diskDeviceKey=2000)
        with pytest.raises(HostAccessDenied):
            open_nfc(target(simulated_host, ticket, disks(vm)[0].backing.fileName), writable=True)


def test_the_running_leaf_does_not_open(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        done(vm.PowerOn())
        ticket = nfc_service(service).NfcGetVmFiles(vm=vm)
        with pytest.raises(HostError):
            open_nfc(target(simulated_host, ticket, disks(vm)[0].backing.fileName))


def test_a_ticket_expires(simulated_host_factory: Factory) -> None:
    clock = ManualClock()
    host = simulated_host_factory(clock=clock)
    host.scenario.ticket_seconds = 30
    with logged_in(host) as service:
        vm = find_vm(service)
        path = disks(vm)[0].backing.fileName
        nfc = nfc_service(service)
        fresh, stale = nfc.NfcGetVmFiles(vm=vm), nfc.NfcGetVmFiles(vm=vm)
        clock.advance(29)
        open_nfc(target(host, fresh, path)).close()
        clock.advance(2)
        with pytest.raises(TransportError):
            open_nfc(target(host, stale, path))


def test_faults_of_the_data_port_hold_from_the_next_ticket(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        path = disks(vm)[0].backing.fileName
        simulated_host.scenario.nfc = NfcFaults(open_error=(13, "not today"))
        with pytest.raises(HostError, match="not today"):
            open_nfc(target(simulated_host, nfc_service(service).NfcGetVmFiles(vm=vm), path))
        simulated_host.scenario.nfc = None
        open_nfc(target(simulated_host, nfc_service(service).NfcGetVmFiles(vm=vm), path)).close()
        assert isinstance(vm, vim.VirtualMachine)
