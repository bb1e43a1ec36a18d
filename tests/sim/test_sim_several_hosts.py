"""Several ESXi hosts behind one vCenter, hundreds of machines, and a management port that has bad days."""

from __future__ import annotations

import http.client
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from simclients import MIB, connection, done, find_vm, logged_in, post, soap_login
from test_host_data_port import nfc_service, target

from nfctools import certificate as one_certificate
from nfctools import other_certificate
from vdkit.errors import ConnectionLost, TicketRefused, TrustError
from vdkit.net.secret import Secret
from vdkit.net.trust import Trust
from vdkit.sim.certificates import make_certificate
from vdkit.sim.host import SimulatedHost
from vdkit.transports.nfc import open_nfc
from vdkit.vsphere.session import Session

Factory = Callable[..., SimulatedHost]
#: As many machines as a busy site has.
MANY = 300


@pytest.fixture
def three(simulated_host_factory: Factory) -> SimulatedHost:
    """A vCenter with three hosts and a machine on each, vm1 to vm3."""
    certificates = [one_certificate(), other_certificate(), one_certificate()]
    return simulated_host_factory(machines=3, personality="vcenter", hosts=3, host_certificates=certificates)


def path_of(host: SimulatedHost, name: str) -> str:
    return host.machine(name).disk(2000).file


# -- several hosts ---------------------------------------------------------------------------------------


def test_each_machine_is_on_a_host_and_its_ticket_leads_there(three: SimulatedHost) -> None:
    with logged_in(three) as service:
        seen = []
        for number in (1, 2, 3):
            vm = find_vm(service, f"vm{number}")
            system = vm.runtime.host
            assert [one.name for one in system.vm] == [f"vm{number}"]
            ticket = nfc_service(service).NfcGetVmFiles(vm=vm)
            seen.append((system.name, ticket.host))
            own = three.data_port(system.name)
            assert (ticket.port, ticket.sslThumbprint) == (own.port, own.thumbprint)
            assert system.summary.config.sslThumbprint == own.thumbprint
            with open_nfc(target(three, ticket, path_of(three, f"vm{number}"))) as disk:
                assert disk.capacity == 64 * MIB
        assert seen == [(f"esx{n}.localdomain", f"127.0.0.{n + 1}") for n in (1, 2, 3)]
        cluster = service.RetrieveContent().rootFolder.childEntity[0].hostFolder.childEntity[0]
        assert [one.name for one in cluster.host] == [name for name, _ in seen]
        assert cluster.summary.numHosts == 3
        assert [len(one.host) for one in cluster.datastore] == [3]


def test_a_ticket_is_good_at_its_own_host_only(three: SimulatedHost) -> None:
    with logged_in(three) as service:
        ticket = nfc_service(service).NfcGetVmFiles(vm=find_vm(service, "vm1"))
        elsewhere = three.data_port("esx2.localdomain")
        wrong = target(three, ticket, path_of(three, "vm1"))
        with pytest.raises(TicketRefused):
            open_nfc(
                type(wrong)(
                    host=elsewhere.host,
                    port=elsewhere.port,
                    ticket=Secret(ticket.sessionId),
                    service=ticket.service,
                    thumbprint=elsewhere.thumbprint,
                    certificate=None,
                    path=wrong.path,
                )
            )
        # It has not been used up there.
        open_nfc(wrong).close()
        with pytest.raises(TicketRefused):
            open_nfc(wrong)


def test_a_session_goes_on_while_its_machine_moves(three: SimulatedHost) -> None:
    with logged_in(three) as service:
        vm = find_vm(service, "vm1")
        with open_nfc(
            target(three, nfc_service(service).NfcGetVmFiles(vm=vm), path_of(three, "vm1"))
        ) as disk:
            disk.read_into(0, bytearray(MIB))
            three.move_machine("vm1")
            assert vm.runtime.host.name == "esx2.localdomain"
            disk.read_into(MIB, bytearray(MIB))
        assert nfc_service(service).NfcGetVmFiles(vm=vm).host == "127.0.0.3"


def test_a_session_may_break_when_its_machine_moves_and_no_other(three: SimulatedHost) -> None:
    three.scenario.migration_breaks_sessions = True
    three.move_machine("vm2", "esx1.localdomain")
    with logged_in(three) as service:
        nfc = nfc_service(service)
        moved, stays = (find_vm(service, name) for name in ("vm1", "vm2"))
        with (
            open_nfc(target(three, nfc.NfcGetVmFiles(vm=moved), path_of(three, "vm1"))) as one,
            open_nfc(target(three, nfc.NfcGetVmFiles(vm=stays), path_of(three, "vm2"))) as other,
        ):
            relocated = vim.vm.RelocateSpec(host=find_vm(service, "vm3").runtime.host)
            done(moved.RelocateVM_Task(spec=relocated))
            with pytest.raises(ConnectionLost):
                for _ in range(100):
                    one.read_into(0, bytearray(MIB))
            other.read_into(0, bytearray(MIB))
        ticket = nfc.NfcGetVmFiles(vm=moved)
        assert ticket.host == "127.0.0.4"
        with open_nfc(target(three, ticket, path_of(three, "vm1"))) as disk:
            disk.read_into(0, bytearray(MIB))


def test_a_machine_moves_by_itself_after_so_many_reads(three: SimulatedHost) -> None:
    three.scenario.migrate_after_reads = 3
    three.scenario.migration_breaks_sessions = True
    with logged_in(three) as service:
        vm = find_vm(service, "vm1")
        ticket = nfc_service(service).NfcGetVmFiles(vm=vm)
        with open_nfc(target(three, ticket, path_of(three, "vm1")), request_size=64 << 10) as disk:
            for _ in range(3):
                disk.read_into(0, bytearray(512))
            with pytest.raises(ConnectionLost):
                disk.read_into(0, bytearray(512))
        assert vm.runtime.host.name == "esx2.localdomain"
        again = nfc_service(service).NfcGetVmFiles(vm=vm)
        with open_nfc(target(three, again, path_of(three, "vm1"))) as disk:
            for _ in range(5):
                disk.read_into(0, bytearray(512))


def test_hosts_have_limits_of_their_own(three: SimulatedHost) -> None:
    three.scenario.nfc_memory_limit = 48 * MIB
    three.scenario.nfc_memory_limits = {"esx3.localdomain": 32 * MIB}
    with logged_in(three) as service:
        for name in ("vm1", "vm3"):
            ticket = nfc_service(service).NfcGetVmFiles(vm=find_vm(service, name))
            with open_nfc(target(three, ticket, path_of(three, name)), request_size=256 << 10) as disk:
                disk.read_into(0, bytearray(MIB))
    ledgers = [three.data_port(f"esx{number}.localdomain").ledger for number in (1, 2, 3)]
    assert [one.limits.memory for one in ledgers] == [48 * MIB, 48 * MIB, 32 * MIB]
    assert [one.memory_total for one in ledgers] == [MIB, 0, MIB]
    assert three.nfc_memory_peak >= 256 << 10
    assert three.nfc_connections_peak == 1


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_a_host_in_maintenance_and_a_lost_one(personality: str, simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(personality=personality)
    with logged_in(host) as service:
        vm = find_vm(service)
        system = vm.runtime.host
        host.scenario.hosts_in_maintenance = frozenset({system.name})
        assert system.runtime.inMaintenanceMode
        with pytest.raises(vim.fault.InvalidHostState):
            nfc_service(service).NfcGetVmFiles(vm=vm)
        with pytest.raises(vim.fault.InvalidHostState):
            vm.PowerOn()
        host.scenario.hosts_in_maintenance = frozenset()
        host.scenario.hosts_disconnected = frozenset({system.name})
        assert system.runtime.connectionState == "notResponding"
        with pytest.raises(vmodl.fault.HostNotConnected):
            nfc_service(service).NfcGetVmFiles(vm=vm)
        host.scenario.hosts_disconnected = frozenset()
        done(vm.PowerOn())


def test_new_machines_go_where_they_are_told(three: SimulatedHost) -> None:
    folder = three.inventory.places.folder_at("clients/berlin")
    with logged_in(three) as service:
        content = service.RetrieveContent()
        berlin = content.searchIndex.FindByInventoryPath("Datacenter/vm/clients/berlin")
        assert berlin._moId == folder.moref
        pool = find_vm(service).resourcePool
        spec = vim.vm.ConfigSpec(name="new", files=vim.vm.FileInfo(vmPathName="[datastore1]"))
        vm = done(berlin.CreateVM_Task(config=spec, pool=pool, host=find_vm(service, "vm3").runtime.host))
        assert (vm.parent, vm.runtime.host.name) == (berlin, "esx3.localdomain")
        found = content.searchIndex.FindByInventoryPath("Datacenter/vm/clients/berlin/new")
        assert found == vm
        names = {one.name for one in berlin.parent.parent.childEntity}
        assert names == {"clients", "vm1", "vm2", "vm3"}


# -- hundreds of machines --------------------------------------------------------------------------------


def test_hundreds_of_machines_are_listed_whole(tmp_path: Path) -> None:
    from vdkit.sim.scenario_file import read_scenario

    path = tmp_path / "many.toml"
    path.write_text(
        f'[host]\npersonality = "vcenter"\nhosts = 3\n[[machine]]\nname = "vm"\ncount = {MANY}\n'
        'folder = "a/b"\n[[machine.disk]]\nsize = "64 MiB"\n',
        encoding="utf-8",
    )
    with read_scenario(path).build(certificate=one_certificate()) as host:
        names = {f"vm-{number:03}" for number in range(1, MANY + 1)}
        with logged_in(host) as service:
            content = service.RetrieveContent()
            view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
            assert len(view.view) == MANY
            collector = content.propertyCollector
            traversal = vmodl.query.PropertyCollector.TraversalSpec(
                type=vim.view.ContainerView, path="view", name="view", skip=False
            )
            spec = vmodl.query.PropertyCollector.FilterSpec(
                objectSet=[
                    vmodl.query.PropertyCollector.ObjectSpec(obj=view, skip=True, selectSet=[traversal])
                ],
                propSet=[
                    vmodl.query.PropertyCollector.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])
                ],
            )
            page = collector.RetrievePropertiesEx([spec], vmodl.query.PropertyCollector.RetrieveOptions())
            assert len(page.objects) == 100
            found = [one.propSet[0].val for one in page.objects]
            while page.token:
                page = collector.ContinueRetrievePropertiesEx(page.token)
                found += [one.propSet[0].val for one in page.objects]
            assert len(found) == MANY
            assert set(found) == names
            hosts = host.inventory.places.hosts
            assert [len(vim.HostSystem(one.moref, service._stub).vm) for one in hosts] == [MANY // 3] * 3


# -- the management port ---------------------------------------------------------------------------------


def test_a_session_ends_after_so_many_calls(simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.session_calls = 20
    with logged_in(simulated_host) as service, pytest.raises(vim.fault.NotAuthenticated):
        for _ in range(30):
            service.CurrentTime()
    simulated_host.scenario.session_calls = None
    with logged_in(simulated_host) as service:
        service.CurrentTime()


def test_the_password_changes_while_a_session_goes_on(simulated_host: SimulatedHost) -> None:
    old = simulated_host.password
    with logged_in(simulated_host) as service:
        simulated_host.change_password("another")
        service.CurrentTime()
        with pytest.raises(Exception, match="incorrect user name or password"):
            Session.login(
                simulated_host.host,
                simulated_host.port,
                simulated_host.user,
                old,
                Trust(sha256=simulated_host.thumbprint_sha256),
            )
        with logged_in(simulated_host) as other:
            other.CurrentTime()
        simulated_host.change_password("third", end_sessions=True)
        with pytest.raises(vim.fault.NotAuthenticated):
            service.CurrentTime()


def test_a_password_is_good_for_so_many_log_ins(simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.password_logins = 1
    with logged_in(simulated_host) as service:
        with pytest.raises(vim.fault.InvalidLogin), logged_in(simulated_host):
            pass
        service.CurrentTime()


@pytest.mark.parametrize("status", [200, 503])
def test_a_proxy_answers_in_html(status: int, simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.proxy_status = status
    found, text, headers = post(simulated_host, b"<anything/>")
    assert (found, headers["content-type"].partition(";")[0]) == (status, "text/html")
    assert text.startswith("<html>")
    simulated_host.scenario.proxy_status = None
    soap_login(simulated_host)


def test_the_management_service_goes_and_comes_back(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        port = simulated_host.port
        simulated_host.stop_management()
        with pytest.raises(OSError, match="refused"):
            connection(simulated_host).connect()
        simulated_host.start_management()
        assert simulated_host.port == port
        with pytest.raises(OSError, match=r"EOF|reset|closed"):  # the connection that was kept
            service.CurrentTime()
        with pytest.raises(vim.fault.NotAuthenticated):
            service.CurrentTime()
        with logged_in(simulated_host) as again:
            again.CurrentTime()
    assert simulated_host.internal_errors == []


def test_the_management_service_restarts_by_itself(simulated_host: SimulatedHost) -> None:
    soap_login(simulated_host)
    simulated_host.scenario.restart_after_requests = 1
    simulated_host.scenario.restart_seconds = 0.05
    with pytest.raises((OSError, http.client.HTTPException)):
        soap_login(simulated_host)
    tries = 0
    while True:
        try:
            soap_login(simulated_host)
            break
        except (OSError, http.client.HTTPException):
            tries += 1
            time.sleep(0.01)
    assert tries
    soap_login(simulated_host)


def test_a_host_that_stops_in_the_middle_of_a_restart_ends(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory()
    host.scenario.restart_after_requests = 0
    host.scenario.restart_seconds = 600
    with pytest.raises((OSError, http.client.HTTPException)):
        soap_login(host)
    host.stop()


def test_a_call_takes_its_time(simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.call_seconds = {"CurrentTime": 0.05}
    with logged_in(simulated_host) as service:
        start = time.monotonic()
        service.CurrentTime()
        assert time.monotonic() - start >= 0.05


# -- certificates and addresses --------------------------------------------------------------------------


def test_two_certificates(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(host_certificates=[other_certificate()])
    with logged_in(host) as service:
        vm = find_vm(service)
        ticket = nfc_service(service).NfcGetVmFiles(vm=vm)
        assert ticket.sslThumbprint == other_certificate().sha1 != host.thumbprint_sha1
        open_nfc(target(host, ticket, path_of(host, "vm1"))).close()
        ticket = nfc_service(service).NfcGetVmFiles(vm=vm)
        ticket.sslThumbprint = host.thumbprint_sha1
        with pytest.raises(TrustError):
            open_nfc(target(host, ticket, path_of(host, "vm1")))


def test_an_old_certificate_is_good_for_a_pin_and_not_for_a_ca(tmp_path: Path) -> None:
    old = make_certificate(from_day=-900, to_day=-1)
    from vdkit.testing.fixtures import make_host

    with make_host(tmp_path / "ds", old, machines=1) as host:
        with logged_in(host) as service:
            service.CurrentTime()
        ca = tmp_path / "ca.pem"
        ca.write_text(old.pem, encoding="ascii")
        with pytest.raises(TrustError, match="expired"):
            Session.login(host.host, host.port, host.user, host.password, Trust(ca_file=str(ca)))


def test_several_hosts_on_ipv6(simulated_host_factory: Factory) -> None:
    certificates = [one_certificate()] * 2
    host = simulated_host_factory(
        machines=2, personality="vcenter", hosts=2, host_certificates=certificates, listen="::1"
    )
    with logged_in(host) as service:
        places: list[Any] = []
        for name in ("vm1", "vm2"):
            ticket = nfc_service(service).NfcGetVmFiles(vm=find_vm(service, name))
            places.append((ticket.host, ticket.port))
            open_nfc(target(host, ticket, path_of(host, name))).close()
        assert [address for address, _ in places] == ["::1", "::1"]
        assert len(set(places)) == 2


def test_the_fixture_takes_a_scenario_file(simulated_host_factory: Factory, tmp_path: Path) -> None:
    path = tmp_path / "host.toml"
    path.write_text('[[machine]]\nname = "alpha"\n[faults]\nlogin_refused = true\n', encoding="utf-8")
    host = simulated_host_factory(scenario_file=path, personality="vcenter")
    assert host.machine("alpha").disks == {}
    with pytest.raises(vim.fault.InvalidLogin), logged_in(host):
        pass
