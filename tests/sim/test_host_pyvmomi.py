"""pyVmomi, the field's own client, uses the simulated host: inventory, tasks, snapshots, reconfiguration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pyVim.connect import Disconnect, SmartConnect
from pyVim.task import WaitForTask
from pyVmomi import vim, vmodl
from simclients import MIB, disks, done, find_vm, logged_in

from vdkit.sim.host import SimulatedHost

Factory = Callable[..., SimulatedHost]


@pytest.mark.parametrize("personality", ["esx", "vcenter"])
def test_smart_connect_sees_the_product(personality: str, simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(personality=personality)
    with logged_in(host) as service:
        content = service.RetrieveContent()
        about = content.about
        esx = personality == "esx"
        assert about.apiType == ("HostAgent" if esx else "VirtualCenter")
        assert about.name == ("VMware ESXi" if esx else "VMware vCenter Server")
        assert about.apiVersion == "8.0.3.0"
        assert content.rootFolder._moId == ("ha-folder-root" if esx else "group-d1")
        assert content.sessionManager.currentSession.userName == "root"
        assert service.CurrentTime().tzinfo is not None
        assert service._stub.version == "vim.version.v8_0_3_0"
    assert host.internal_errors == []


def test_the_thumbprint_is_what_the_certificate_has(shared_simulated_host: SimulatedHost) -> None:
    for pin in (shared_simulated_host.thumbprint_sha1, shared_simulated_host.thumbprint_sha256):
        options = {"user": "root", "pwd": shared_simulated_host.password.reveal()}
        service = SmartConnect(
            host=shared_simulated_host.host,
            port=shared_simulated_host.port,
            thumbprint=pin.replace(":", ""),
            **options,
        )
        Disconnect(service)


def test_the_tree_can_be_walked_from_the_root(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(machines=3, personality="vcenter")
    with logged_in(host) as service:
        root = service.RetrieveContent().rootFolder
        center = root.childEntity[0]
        assert center.parent == root
        assert sorted(vm.name for vm in center.vmFolder.childEntity) == ["vm1", "vm2", "vm3"]
        compute = center.hostFolder.childEntity[0]
        assert isinstance(compute, vim.ClusterComputeResource)
        system = compute.host[0]
        assert len(system.vm) == 3
        assert system.runtime.connectionState == "connected"
        assert compute.resourcePool.owner == compute
        datastore = center.datastoreFolder.childEntity[0]
        assert (datastore.name, datastore.summary.type) == ("datastore1", "VMFS")
        assert datastore.summary.freeSpace > 0
        assert len(datastore.vm) == 3
        assert center.network[0].name == "VM Network"


def test_container_views(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(machines=2)
    with logged_in(host) as service:
        content = service.RetrieveContent()
        root = content.rootFolder
        manager = content.viewManager
        view = manager.CreateContainerView(root, [vim.VirtualMachine, vim.Datastore], True)
        assert sorted(one.name for one in view.view) == ["datastore1", "vm1", "vm2"]
        assert list(view.type) == ["VirtualMachine", "Datastore"]
        host.machine("vm2").destroy()
        assert sorted(one.name for one in view.view) == ["datastore1", "vm1"]
        flat = manager.CreateContainerView(root, [], False)
        assert [one.name for one in flat.view] == ["ha-datacenter"]
        listed = manager.CreateListView([root])
        listed.ModifyListView(add=[root.childEntity[0]], remove=[root])
        assert [one.name for one in listed.view] == ["ha-datacenter"]
        view.Destroy()
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            _ = view.view


def test_power(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        assert vm.runtime.powerState == "poweredOff"
        done(vm.PowerOn())
        assert vm.runtime.powerState == "poweredOn"
        with pytest.raises(vim.fault.InvalidPowerState) as caught:
            WaitForTask(vm.PowerOn())
        assert caught.value.existingState == "poweredOn"
        with pytest.raises(vim.fault.InvalidPowerState):
            WaitForTask(vm.Destroy())
        done(vm.PowerOff())
        assert not simulated_host.machine("vm1").powered_on


def test_snapshots(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        done(vm.PowerOn())
        assert vm.snapshot is None
        first = done(vm.CreateSnapshot("first", "one & only", False, False))
        second = done(vm.CreateSnapshotEx_Task(name="second", memory=False, quiesceSpec=None))
        tree = vm.snapshot.rootSnapshotList[0]
        assert (tree.name, tree.description, tree.snapshot) == ("first", "one & only", first)
        assert tree.childSnapshotList[0].snapshot == second == vm.snapshot.currentSnapshot
        assert (first.vm, list(first.childSnapshot)) == (vm, [second])
        backing = disks(vm)[0].backing
        assert backing.fileName == "[datastore1] vm1/vm1-000002.vmdk"
        assert backing.parent.parent.fileName == "[datastore1] vm1/vm1.vmdk"
        assert disks(first)[0].backing.fileName == "[datastore1] vm1/vm1.vmdk"
        chain = vm.layoutEx.disk[0].chain
        files = {one.key: one.name for one in vm.layoutEx.file}
        assert files[chain[0].fileKey[0]] == "[datastore1] vm1/vm1.vmdk"
        done(first.RemoveSnapshot_Task(removeChildren=False))
        assert [one.name for one in vm.snapshot.rootSnapshotList] == ["second"]
        done(vm.RemoveAllSnapshots_Task())
        assert vm.snapshot is None
        assert disks(vm)[0].backing.parent is None


def test_revert(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        done(vm.PowerOn())
        guest = simulated_host.machine("vm1").disk(2000).guest()
        guest.write_from(0, b"before")
        snapshot = done(vm.CreateSnapshot("s", None, False, False))
        guest.write_from(0, b"after!")
        done(snapshot.RevertToSnapshot_Task())
        assert vm.runtime.powerState == "poweredOff"
        done(vm.PowerOn())
        content = bytearray(6)
        simulated_host.machine("vm1").disk(2000).guest().read_into(0, content)
        assert content == b"before"
        done(vm.RevertToCurrentSnapshot_Task())


def test_changed_areas_in_pages(simulated_host: SimulatedHost) -> None:
    simulated_host.scenario.areas_per_page = 3
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeTrackingEnabled=True)))
        assert vm.config.changeTrackingEnabled
        done(vm.PowerOn())
        first = done(vm.CreateSnapshot("first", None, False, False))
        saved = disks(first)[0].backing.changeId
        done(first.RemoveSnapshot_Task(removeChildren=False))
        written = [(number * 4 * MIB, 65536) for number in range(8)]
        guest = simulated_host.machine("vm1").disk(2000).guest()
        for offset, _ in written:
            guest.write_from(offset + 100, b"x")
        second = done(vm.CreateSnapshot("second", None, False, False))
        found, calls, offset = [], 0, 0
        while offset < disks(second)[0].capacityInBytes:
            answer = vm.QueryChangedDiskAreas(second, 2000, offset, saved)
            assert answer.startOffset == offset
            assert len(answer.changedArea) <= 3
            found += [(area.start, area.length) for area in answer.changedArea]
            offset = answer.startOffset + answer.length
            calls += 1
        assert found == written
        assert calls >= 3
        assert disks(second)[0].backing.changeId != saved


def disk_change(**fields: Any) -> Any:
    device = vim.vm.device.VirtualDisk(
        key=-1,
        controllerKey=1000,
        unitNumber=-1,
        capacityInKB=8 * 1024,
        backing=vim.vm.device.VirtualDisk.FlatVer2BackingInfo(
            fileName="", diskMode="persistent", thinProvisioned=True
        ),
    )
    return vim.vm.device.VirtualDeviceSpec(
        operation=fields.get("operation", "add"),
        fileOperation=fields.get("fileOperation", "create"),
        device=fields.get("device", device),
    )


def test_reconfigure(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        version = vm.config.changeVersion
        done(
            vm.ReconfigVM_Task(
                vim.vm.ConfigSpec(
                    name="renamed", memoryMB=2048, numCPUs=2, annotation="hi", deviceChange=[disk_change()]
                )
            )
        )
        config = vm.config
        assert (config.name, config.hardware.memoryMB, config.hardware.numCPU) == ("renamed", 2048, 2)
        assert config.annotation == "hi"
        added = disks(vm)[1]
        assert (added.key, added.capacityInBytes) == (2001, 8 * MIB)
        with pytest.raises(vim.fault.ConcurrentAccess):
            WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(changeVersion=version, memoryMB=1024)))
        added.capacityInKB, added.capacityInBytes = 16 * 1024, 16 * MIB
        done(
            vm.ReconfigVM_Task(
                vim.vm.ConfigSpec(
                    deviceChange=[disk_change(operation="edit", fileOperation=None, device=added)]
                )
            )
        )
        assert disks(vm)[1].capacityInBytes == 16 * MIB
        removal = disk_change(operation="remove", fileOperation="destroy", device=disks(vm)[1])
        done(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[removal])))
        assert len(disks(vm)) == 1
        floppy = vim.vm.device.VirtualDeviceSpec(operation="add", device=vim.vm.device.VirtualFloppy(key=-1))
        with pytest.raises(vim.fault.InvalidDeviceSpec):
            WaitForTask(vm.ReconfigVM_Task(vim.vm.ConfigSpec(deviceChange=[floppy])))


def test_create_unregister_register_destroy(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        center = service.RetrieveContent().rootFolder.childEntity[0]
        pool = center.hostFolder.childEntity[0].resourcePool
        controller = vim.vm.device.VirtualDeviceSpec(
            operation="add",
            device=vim.vm.device.ParaVirtualSCSIController(key=1000, busNumber=0, sharedBus="noSharing"),
        )
        spec = vim.vm.ConfigSpec(
            name="new",
            files=vim.vm.FileInfo(vmPathName="[datastore1]"),
            memoryMB=512,
            numCPUs=1,
            deviceChange=[controller, disk_change(), disk_change()],
        )
        vm = done(center.vmFolder.CreateVM_Task(config=spec, pool=pool))
        assert isinstance(vm, vim.VirtualMachine)
        assert [d.key for d in disks(vm)] == [2000, 2001]
        assert vm.summary.config.vmPathName == "[datastore1] new/new.vmx"
        with pytest.raises(vim.fault.DuplicateName):
            WaitForTask(center.vmFolder.CreateVM_Task(config=spec, pool=pool))
        vm.UnregisterVM()
        assert [one.name for one in center.vmFolder.childEntity] == ["vm1"]
        again = done(
            center.vmFolder.RegisterVM_Task(path="[datastore1] new/new.vmx", asTemplate=False, pool=pool)
        )
        assert [d.key for d in disks(again)] == [2000, 2001]
        done(again.Destroy_Task())
        assert not simulated_host.inventory.datastore("datastore1").exists("new/new.vmx")


def test_search_index(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(machines=2)
    with logged_in(host) as service:
        index = service.RetrieveContent().searchIndex
        vm = find_vm(service, "vm2")
        config = vm.config
        assert index.FindByUuid(None, config.uuid, True, False) == vm
        assert index.FindByUuid(None, config.instanceUuid.upper(), True, True) == vm
        assert index.FindByUuid(None, "nobody", True) is None
        assert index.FindAllByUuid(None, config.uuid, True, False)[0] == vm
        assert index.FindByInventoryPath("ha-datacenter/vm/vm2") == vm
        assert index.FindByInventoryPath("/ha-datacenter/vm/vm3") is None
        center = service.RetrieveContent().rootFolder.childEntity[0]
        assert index.FindByDatastorePath(center, "[datastore1] vm2/vm2.vmx") == vm
        assert index.FindChild(center.vmFolder, "vm2") == vm
        assert index.FindByDnsName(None, "vm2", True) is None
        with pytest.raises(vim.fault.InvalidDatastorePath):
            index.FindByDatastorePath(center, "[nowhere] x.vmx")


def test_files_of_a_datastore(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service:
        content = service.RetrieveContent()
        center = content.rootFolder.childEntity[0]
        content.fileManager.MakeDirectory("[datastore1] made/deep", center, True)
        manager = content.virtualDiskManager
        spec = vim.VirtualDiskManager.FileBackedVirtualDiskSpec(
            diskType="thin", adapterType="lsiLogic", capacityKb=4096
        )
        assert done(manager.CreateVirtualDisk_Task("[datastore1] made/d.vmdk", center, spec)) == (
            "[datastore1] made/d.vmdk"
        )
        found = done(center.datastore[0].browser.SearchDatastore_Task("[datastore1] made", None))
        assert [one.path for one in found.file] == ["d-flat.vmdk", "d.vmdk", "deep"]
        done(manager.DeleteVirtualDisk_Task("[datastore1] made/d.vmdk", center))
        with pytest.raises(vim.fault.FileNotFound):
            WaitForTask(content.fileManager.DeleteDatastoreFile_Task("[datastore1] made/d.vmdk", center))
        with pytest.raises(vim.fault.InvalidDatastorePath):
            content.fileManager.MakeDirectory("made/deep", center)
    assert simulated_host.internal_errors == []
