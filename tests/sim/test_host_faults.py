"""The simulated host's faults: each field of the scenario, as pyVmomi sees it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl
from simclients import MIB, disks, done, find_vm, logged_in

from vdkit.sim.clock import ManualClock
from vdkit.sim.host import SimulatedHost
from vdkit.wire.vim import internal

Factory = Callable[..., SimulatedHost]


def test_a_call_fails_as_told(simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.call_errors["PowerOnVM_Task"] = "vim.fault.InsufficientResourcesFault"
    simulated_host.scenario.call_errors["ReconfigVM_Task"] = "nonsense"
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        with pytest.raises(vim.fault.InsufficientResourcesFault):
            vm.PowerOn()
        with pytest.raises(vmodl.fault.SystemError, match="nonsense"):
            vm.Reconfigure(vim.vm.ConfigSpec())


def test_a_task_fails_as_told(simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.task_errors["CreateSnapshot_Task"] = "SnapshotFault"
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        task = vm.CreateSnapshot("s", None, False, False)
        with pytest.raises(vim.fault.SnapshotFault):
            WaitForTask(task)
        info = task.info
        assert (info.state, info.result, info.entity, info.progress) == ("error", None, vm, None)
        assert info.completeTime >= info.startTime >= info.queueTime
        assert info.descriptionId == "VirtualMachine.createSnapshot"
        assert vm.snapshot is None


def test_a_task_takes_time_and_reports_progress(simulated_host_factory: Factory) -> None:
    clock = ManualClock()
    host = simulated_host_factory(clock=clock)
    host.scenario.task_seconds["CreateSnapshot_Task"] = 100
    with logged_in(host) as service:
        vm = find_vm(service)
        task = vm.CreateSnapshot("s", None, False, False)
        with pytest.raises(vim.fault.TaskInProgress):
            vm.PowerOn()
        assert [one._moId for one in vm.recentTask] == [task._moId]
        while task.info.state == "queued":
            pass
        clock.advance(50)
        while (info := task.info).progress < 40:
            pass
        assert (info.state, info.completeTime) == ("running", None)
        assert vm.snapshot is None
        clock.advance(51)
        assert isinstance(done(task), vim.vm.Snapshot)
        assert task.info.progress == 100
        assert task in service.RetrieveContent().taskManager.recentTask


def test_a_task_can_be_cancelled(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(clock=ManualClock())
    host.scenario.task_seconds["PowerOnVM_Task"] = 100
    with logged_in(host) as service:
        task = find_vm(service).PowerOn()
        task.Cancel()
        with pytest.raises(vmodl.fault.RequestCanceled):
            WaitForTask(task)
        with pytest.raises(vim.fault.InvalidState):
            task.Cancel()


def test_slow_consolidation_blocks_the_next_snapshot(simulated_host_factory: Factory) -> None:
    clock = ManualClock()
    host = simulated_host_factory(clock=clock)
    with logged_in(host) as service:
        vm = find_vm(service)
        done(vm.PowerOn())
        snapshot = done(vm.CreateSnapshot("s", None, False, False))
        host.scenario.consolidation_seconds = 60
        removal = snapshot.RemoveSnapshot_Task(removeChildren=False)
        with pytest.raises(vim.fault.TaskInProgress):
            vm.CreateSnapshot("too soon", None, False, False)
        while removal.info.state in ("queued", "running"):
            clock.advance(61)
        done(vm.CreateSnapshot("later", None, False, False))


def test_failed_consolidation_is_seen_and_repaired(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        done(vm.PowerOn())
        snapshot = done(vm.CreateSnapshot("s", None, False, False))
        simulated_host.scenario.consolidation_fails = True
        with pytest.raises(vim.fault.SnapshotFault):
            WaitForTask(snapshot.RemoveSnapshot_Task(removeChildren=False))
        assert vm.snapshot is None
        assert vm.runtime.consolidationNeeded
        assert disks(vm)[0].backing.parent is not None
        simulated_host.scenario.consolidation_fails = False
        done(vm.ConsolidateVMDisks_Task())
        assert not vm.runtime.consolidationNeeded
        assert disks(vm)[0].backing.parent is None


def test_quiescing_fails_as_told(simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.quiesce_fails = True
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        done(vm.PowerOn())
        with pytest.raises(vim.fault.ApplicationQuiesceFault):
            WaitForTask(vm.CreateSnapshot("s", None, False, True))
        done(vm.CreateSnapshot("s", None, False, False))


def test_change_tracking_faults(simulated_host: SimulatedHost) -> None:
    scenario = simulated_host.scenario
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        snapshot = done(vm.CreateSnapshot("untracked", None, False, False))
        with pytest.raises(vmodl.fault.NotSupported):
            vm.QueryChangedDiskAreas(snapshot, 2000, 0, "*")
        done(snapshot.RemoveSnapshot_Task(removeChildren=False))
        done(vm.Reconfigure(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
        snapshot = done(vm.CreateSnapshot("tracked", None, False, False))
        query = vm.QueryChangedDiskAreas
        assert query(snapshot, 2000, 0, "*").length == 64 * MIB
        with pytest.raises(vim.fault.FileFault):
            query(snapshot, 2000, 0, "52 00 00 00 00 00 00 00-00 00 00 00 00 00 00 00/1")
        for key, offset, name in ((1999, 0, "deviceKey"), (2000, 64 * MIB, "startOffset")):
            with pytest.raises(vmodl.fault.InvalidArgument) as caught:
                query(snapshot, key, offset, "*")
            assert caught.value.invalidProperty == name
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            query(vim.vm.Snapshot("77"), 2000, 0, "*")
        scenario.cbt_error, scenario.cbt_error_offset = "InvalidArgument", MIB
        assert query(snapshot, 2000, 0, "*").length == 64 * MIB
        with pytest.raises(vmodl.fault.InvalidArgument) as caught:
            query(snapshot, 2000, MIB, "*")
        assert caught.value.msg == "A specified parameter was not correct: startOffset"
        scenario.cbt_error, scenario.cbt_error_offset = "vim.fault.FileFault", 0
        with pytest.raises(vim.fault.FileFault):
            query(snapshot, 2000, 0, "*")


def test_methods_that_are_not_simulated_are_named(shared_simulated_host: SimulatedHost) -> None:
    with logged_in(shared_simulated_host) as service:
        with pytest.raises(vmodl.fault.MethodNotFound) as caught:
            find_vm(service).ExportVm()
        assert caught.value.method == "ExportVm"


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_tickets(personality: str, simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(personality=personality)
    with logged_in(host) as service:
        vm = find_vm(service)
        content = internal.retrieve_internal_content(service._stub)
        assert content.nfcService == ("ha-nfc-service" if personality == "esx" else "nfcService")
        nfc = internal.NfcService(content.nfcService, service._stub)
        system = vm.runtime.host
        tickets = [
            nfc.NfcGetVmFiles(vm=vm),
            nfc.NfcRandomAccessOpenReadonly(vm=vm, diskDeviceKey=2000, hostForAccess=system),
            nfc.NfcRandomAccessOpenDisk(vm=vm, diskDeviceKey=2000, hostForAccess=None),
        ]
        assert len({one.sessionId for one in tickets}) == 3
        for one in tickets:
            assert (one.port, one.serviceVersion) == (host.nfc_port, "1.1")
            assert one.sslThumbprint == host.thumbprint_sha1
            if personality == "esx":
                assert (one.host, one.service) == (None, "nfc")
            else:
                assert (one.host, one.service) == ("127.0.0.1", "vpxa-nfc")
        assert nfc.NfcGetServerNfcLibVersion(hostForAccess=system) > 0
        with pytest.raises(vmodl.fault.InvalidArgument, match="deviceKey"):
            nfc.NfcRandomAccessOpenReadonly(vm=vm, diskDeviceKey=2007)
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            nfc.NfcGetVmFiles(vm=vim.VirtualMachine("none"))
        host.scenario.ticket_error = "vim.fault.NoPermission"
        with pytest.raises(vim.fault.NoPermission):
            nfc.NfcGetVmFiles(vm=vm)
