"""The property collector: paths, pages, traversals, and updates that are reported once and not lost."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from pyVmomi import vim, vmodl
from simclients import done, find_vm, logged_in

from vdkit.sim.faults import InvalidDatastorePath
from vdkit.sim.host import SimulatedHost

Factory = Callable[..., SimulatedHost]
PC = vmodl.query.PropertyCollector


def machines_spec(service: Any, *paths: str, everything: bool = False) -> Any:
    content = service.RetrieveContent()
    view = content.viewManager.CreateContainerView(content.rootFolder, [vim.VirtualMachine], True)
    walk = PC.TraversalSpec(name="view", type=vim.view.ContainerView, path="view", skip=False)
    return PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=view, skip=True, selectSet=[walk])],
        propSet=[PC.PropertySpec(type=vim.VirtualMachine, pathSet=list(paths), all=everything)],
    )


def one_spec(obj: Any, *paths: str) -> Any:
    return PC.FilterSpec(
        objectSet=[PC.ObjectSpec(obj=obj)], propSet=[PC.PropertySpec(type=type(obj), pathSet=list(paths))]
    )


def values(content: Any) -> dict[str, Any]:
    return {one.name: one.val for one in content.propSet}


def test_paths(shared_simulated_host: SimulatedHost) -> None:
    with logged_in(shared_simulated_host) as service:
        vm = find_vm(service)
        collector = service.RetrieveContent().propertyCollector
        paths = [
            "name",
            "runtime.powerState",
            "config.hardware.device",
            "config.hardware.device[2000].backing.fileName",
            "config.hardware.device[2000].capacityInBytes",
            "config.hardware.device[999]",
            "snapshot",
            "datastore",
            "rootSnapshot",
        ]
        [content] = collector.RetrieveContents([one_spec(vm, *paths)])
        found = values(content)
        assert found["name"] == "vm1"
        assert found["runtime.powerState"] == "poweredOff"
        assert found["config.hardware.device[2000].backing.fileName"] == "[datastore1] vm1/vm1.vmdk"
        assert found["config.hardware.device[2000].capacityInBytes"] == 64 << 20
        # PCI, two IDE, SCSI, network, one disk.
        assert len(found["config.hardware.device"]) == 6
        assert found["datastore"][0].name == "datastore1"
        assert list(found["rootSnapshot"]) == []
        # What is unset is left out, and is no error.
        assert found.keys() == set(paths) - {"snapshot", "config.hardware.device[999]"}
        assert list(content.missingSet) == []


@pytest.mark.parametrize(
    "path",
    [
        "nothing",
        "config.nothing",
        "name.length",
        "config.hardware.device.key",
        "config..x",
        "",
        "a[",
        "name.",
    ],
)
def test_paths_that_cannot_be_are_refused(path: str, shared_simulated_host: SimulatedHost) -> None:
    with logged_in(shared_simulated_host) as service:
        collector = service.RetrieveContent().propertyCollector
        with pytest.raises(vmodl.query.InvalidProperty) as caught:
            collector.RetrieveContents([one_spec(find_vm(service), path)])
        assert caught.value.name == path


def test_all_properties(shared_simulated_host: SimulatedHost) -> None:
    with logged_in(shared_simulated_host) as service:
        collector = service.RetrieveContent().propertyCollector
        [content] = collector.RetrieveContents([machines_spec(service, everything=True)])
        assert {"name", "config", "runtime", "summary", "layoutEx", "datastore"} <= values(content).keys()


def test_what_cannot_be_read_is_missing_with_its_fault(
    simulated_host: SimulatedHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = simulated_host.machine("vm1")
    with logged_in(simulated_host) as service:
        vm = find_vm(service)
        monkeypatch.setattr(simulated_host.inventory, "datastore", _fails)
        collector = service.RetrieveContent().propertyCollector
        [content] = collector.RetrieveContents([one_spec(vm, "name", "config")])
        assert values(content) == {"name": machine.name}
        [missing] = content.missingSet
        assert missing.path == "config"
        assert isinstance(missing.fault, vim.fault.InvalidDatastorePath)


def _fails(name: str) -> Any:
    raise InvalidDatastorePath(name)


def test_pages(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(machines=7)
    with logged_in(host) as service:
        collector = service.RetrieveContent().propertyCollector
        spec = machines_spec(service, "name")
        page = collector.RetrievePropertiesEx([spec], PC.RetrieveOptions(maxObjects=3))
        names, sizes = [], []
        while True:
            sizes.append(len(page.objects))
            names += [values(content)["name"] for content in page.objects]
            if not page.token:
                break
            page = collector.ContinueRetrievePropertiesEx(page.token)
        assert sizes == [3, 3, 1]
        assert sorted(names) == [f"vm{number}" for number in range(1, 8)]
        host.scenario.page_objects = 2
        page = collector.RetrievePropertiesEx([spec], PC.RetrieveOptions())
        assert len(page.objects) == 2
        collector.CancelRetrievePropertiesEx(page.token)
        with pytest.raises(vmodl.fault.InvalidArgument):
            collector.ContinueRetrievePropertiesEx(page.token)


def test_named_traversals_may_go_round(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(machines=2)
    again = [PC.SelectionSpec(name="folder"), PC.SelectionSpec(name="center")]
    walks = [
        PC.TraversalSpec(name="folder", type=vim.Folder, path="childEntity", selectSet=again),
        PC.TraversalSpec(name="center", type=vim.Datacenter, path="vmFolder", selectSet=again),
    ]
    with logged_in(host) as service:
        content = service.RetrieveContent()
        spec = PC.FilterSpec(
            objectSet=[PC.ObjectSpec(obj=content.rootFolder, selectSet=walks)],
            propSet=[PC.PropertySpec(type=vim.ManagedEntity, pathSet=["name"])],
        )
        found = content.propertyCollector.RetrieveContents([spec])
        names = [values(one)["name"] for one in found]
        assert names == ["ha-folder-root", "ha-datacenter", "vm", "vm1", "vm2"]


def test_a_start_that_is_gone_is_named(shared_simulated_host: SimulatedHost) -> None:
    with logged_in(shared_simulated_host) as service:
        collector = service.RetrieveContent().propertyCollector
        spec = one_spec(vim.VirtualMachine("4711"), "name")
        with pytest.raises(vmodl.fault.ManagedObjectNotFound) as caught:
            collector.RetrieveContents([spec])
        assert caught.value.obj._moId == "4711"
        spec.reportMissingObjectsInResults = True
        assert list(collector.RetrieveContents([spec])) == []


def changes(update: Any) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (one.kind, one.obj._moId, {c.name: c.val for c in one.changeSet})
        for found in update.filterSet
        for one in found.objectSet
    ]


def test_updates_enter_modify_leave(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(machines=2)
    quick = PC.WaitOptions(maxWaitSeconds=0)
    with logged_in(host) as service:
        collector = service.RetrieveContent().propertyCollector.CreatePropertyCollector()
        made = collector.CreateFilter(machines_spec(service, "name", "runtime.powerState"), True)
        assert list(collector.filter) == [made]
        first = collector.WaitForUpdatesEx("", quick)
        assert sorted(changes(first)) == [
            ("enter", "1", {"name": "vm1", "runtime.powerState": "poweredOff"}),
            ("enter", "2", {"name": "vm2", "runtime.powerState": "poweredOff"}),
        ]
        assert collector.WaitForUpdatesEx(first.version, quick) is None
        host.machine("vm2").power_on()
        second = collector.WaitForUpdatesEx(first.version, quick)
        assert changes(second) == [("modify", "2", {"runtime.powerState": "poweredOn"})]
        # The reply to the last call was lost on its way: the client asks again and is told again.
        again = collector.WaitForUpdatesEx(first.version, quick)
        assert changes(again) == changes(second)
        host.machine("vm1").destroy()
        third = collector.WaitForUpdatesEx(again.version, quick)
        assert changes(third) == [("leave", "1", {})]
        with pytest.raises(vmodl.query.InvalidCollectorVersion):
            collector.WaitForUpdatesEx("77", quick)
        made.Destroy()
        assert collector.WaitForUpdatesEx(third.version, quick) is None
        collector.Destroy()
        with pytest.raises(vmodl.fault.ManagedObjectNotFound):
            collector.WaitForUpdatesEx(third.version, quick)


def test_an_object_that_is_gone_leaves_its_filter(simulated_host: SimulatedHost) -> None:
    quick = PC.WaitOptions(maxWaitSeconds=0)
    with logged_in(simulated_host) as service:
        collector = service.RetrieveContent().propertyCollector
        collector.CreateFilter(one_spec(find_vm(service), "name"), True)
        first = collector.WaitForUpdatesEx("", quick)
        simulated_host.machine("vm1").destroy()
        assert changes(collector.WaitForUpdatesEx(first.version, quick)) == [("leave", "1", {})]


def test_updates_come_in_bounded_pieces(simulated_host_factory: Factory) -> None:
    host = simulated_host_factory(machines=5)
    with logged_in(host) as service:
        collector = service.RetrieveContent().propertyCollector
        collector.CreateFilter(machines_spec(service, "name"), True)
        options = PC.WaitOptions(maxWaitSeconds=0, maxObjectUpdates=2)
        version, sizes = "", []
        while (update := collector.WaitForUpdatesEx(version, options)) is not None:
            version = update.version
            sizes.append((len(update.filterSet[0].objectSet), bool(update.truncated)))
        assert sizes == [(2, True), (2, True), (1, False)]


def test_a_wait_ends_when_something_happens(simulated_host: SimulatedHost) -> None:
    with logged_in(simulated_host) as service, logged_in(simulated_host) as other:
        vm = find_vm(service)
        collector = service.RetrieveContent().propertyCollector
        collector.CreateFilter(one_spec(vm, "runtime.powerState"), True)
        version = collector.WaitForUpdatesEx("", None).version
        found: list[Any] = []
        waiter = threading.Thread(target=lambda: found.append(collector.WaitForUpdatesEx(version, None)))
        waiter.start()
        done(find_vm(other).PowerOn())
        waiter.join(30)
        assert changes(found[0]) == [("modify", "1", {"runtime.powerState": "poweredOn"})]


def test_a_wait_can_be_cancelled(shared_simulated_host: SimulatedHost) -> None:
    with logged_in(shared_simulated_host) as service:
        vm = find_vm(service)
        collector = service.RetrieveContent().propertyCollector
        collector.CreateFilter(one_spec(vm, "name"), True)
        version = collector.WaitForUpdatesEx("", None).version
        caught: list[BaseException] = []
        begun = threading.Event()

        def wait() -> None:
            begun.set()
            try:
                collector.WaitForUpdatesEx(version, None)
            except vmodl.fault.RequestCanceled as fault:
                caught.append(fault)

        waiter = threading.Thread(target=wait)
        waiter.start()
        begun.wait(30)
        while waiter.is_alive():
            # A cancellation that comes before the wait is none: ask until it meets it.
            collector.CancelWaitForUpdates()
            waiter.join(0.05)
        assert len(caught) == 1
