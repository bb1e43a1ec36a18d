"""Starting and stopping: what is started ends, again and again, whatever clients are doing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path

import pytest
from pyVim.connect import SmartConnect
from pyVmomi import vim, vmodl
from simclients import done, find_vm, logged_in, soap_login

from vdkit.errors import ConnectFailed, UsageError
from vdkit.net.https import HttpsFile
from vdkit.net.trust import Trust
from vdkit.sim.certificates import Certificate
from vdkit.sim.clock import ManualClock
from vdkit.sim.host import SimulatedHost
from vdkit.sim.scenario import Scenario
from vdkit.testing.fixtures import make_host

Factory = Callable[..., SimulatedHost]
PC = vmodl.query.PropertyCollector


def test_many_starts_leave_nothing(
    tmp_path: Path, simulated_certificate: Certificate, no_leaks: None
) -> None:
    for number in range(5):
        with make_host(tmp_path / str(number), simulated_certificate, machines=1) as host:
            assert host.port != host.nfc_port
            with logged_in(host) as service:
                done(find_vm(service).PowerOn())
        host.stop()
        assert not Path(host.environment().get("GOVC_TLS_KNOWN_HOSTS", "/nothing")).exists()


def test_stop_ends_waits_tasks_and_connections(
    tmp_path: Path, simulated_certificate: Certificate, no_leaks: None
) -> None:
    host = make_host(tmp_path / "ds", simulated_certificate, machines=1, clock=ManualClock())
    host.scenario.task_seconds["PowerOnVM_Task"] = 1000
    host.start()
    pin = host.thumbprint_sha256.replace(":", "")
    service = SmartConnect(
        host=host.host, port=host.port, user="root", pwd=host.password.reveal(), thumbprint=pin
    )
    vm = find_vm(service)
    vm.PowerOn()
    collector = service.RetrieveContent().propertyCollector
    spec = PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=vm)],
        propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=["name"])],
    )
    collector.CreateFilter(spec, True)
    version = collector.WaitForUpdatesEx("", None).version
    ended: list[BaseException] = []

    def wait() -> None:
        try:
            collector.WaitForUpdatesEx(version, None)
        except (OSError, HTTPException, vmodl.MethodFault) as error:
            ended.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    host.stop()
    waiter.join(30)
    assert len(ended) == 1
    assert not host.machine("vm1").powered_on
    service._stub.DropConnections()


def test_machines_come_back_as_they_were(tmp_path: Path, simulated_certificate: Certificate) -> None:
    folder = tmp_path / "ds"
    with make_host(folder, simulated_certificate, machines=1) as host, logged_in(host) as service:
        done(find_vm(service).CreateSnapshot("kept", None, False, False))
    with SimulatedHost([folder], certificate=simulated_certificate) as again, logged_in(again) as service:
        assert [one.name for one in find_vm(service).snapshot.rootSnapshotList] == ["kept"]


def test_a_port_that_is_taken(simulated_host: SimulatedHost, tmp_path: Path, no_leaks: None) -> None:
    other = SimulatedHost([tmp_path], port=simulated_host.port, certificate=simulated_host.certificate)
    with pytest.raises(ConnectFailed, match=str(simulated_host.port)):
        other.start()


def test_a_host_starts_once(simulated_host: SimulatedHost) -> None:
    with pytest.raises(UsageError):
        simulated_host.start()


def test_a_version_that_never_was(tmp_path: Path, simulated_certificate: Certificate) -> None:
    host = SimulatedHost(
        [tmp_path], certificate=simulated_certificate, scenario=Scenario(api_version="4711.0")
    )
    with pytest.raises(UsageError, match="4711"):
        host.start()


def test_another_version(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(scenario=Scenario(api_version="6.7"))
    with logged_in(host) as service:
        assert service.RetrieveContent().about.apiVersion == "6.7"
        assert service._stub.version == "vim.version.version12"
        assert find_vm(service).config.name == "vm1"


def test_ipv6(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(listen="::1", personality="vcenter")
    assert host.environment()["VDKIT_HOST"] == f"[::1]:{host.port}"
    assert host.environment()["GOVC_URL"] == f"https://[::1]:{host.port}/sdk"
    soap_login(host)
    trust = Trust.of_thumbprint(host.thumbprint_sha256)
    host.power_on_all()
    with HttpsFile(
        "::1", host.port, "/guest/vm-42/2000", user=host.user, password=host.password, trust=trust
    ) as door:
        assert door.size() == 64 << 20


def test_clients_connect_again_after_their_connections_broke(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        simulated_host.break_connections()
        service._stub.DropConnections()
        assert find_vm(service).name == "vm1"


def test_a_made_password_is_not_the_same_twice(tmp_path: Path, simulated_certificate: Certificate) -> None:
    hosts = [SimulatedHost([tmp_path], certificate=simulated_certificate) for _ in range(2)]
    assert hosts[0].password.reveal() != hosts[1].password.reveal()


def test_the_shared_host_is_for_looking(shared_simulated_host: SimulatedHost) -> None:
    with logged_in(shared_simulated_host) as service:
        assert find_vm(service).runtime.powerState == "poweredOff"
