"""Whatever is done to a machine in whatever order: its content, and who keeps it in its place."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given, settings
from hypothesis import strategies as st

from vdkit.block.memory import MemoryStore
from vdkit.sim import relocation
from vdkit.sim.datastore import Datastore
from vdkit.sim.faults import ModelFault
from vdkit.sim.inventory import Inventory
from vdkit.sim.machine import Machine
from vdkit.sim.snapshot import DiskSpec
from vdkit.sim.soap.authorization import DisabledMethods
from vdkit.sim.soap.sessions import Session

SIZE = 1 << 20
KEY = ("VirtualMachine", "vm-1")

acts = st.one_of(
    st.tuples(st.just("write"), st.integers(0, SIZE // 512 - 8), st.integers(1, 255)),
    st.tuples(st.just("snapshot"), st.just(0), st.just(0)),
    st.tuples(st.just("remove"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("revert"), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("relocate"), st.integers(0, 2), st.just(0)),
    st.tuples(st.just("power"), st.just(0), st.just(0)),
)


def content(machine: Machine) -> bytes:
    if not machine.powered_on:
        machine.power_on()
    with machine.disk(2000).guest() as guest:
        data = bytearray(guest.capacity)
        guest.read_into(0, data)
    return bytes(data)


@settings(max_examples=30, deadline=None)
@given(st.lists(acts, max_size=14))
def test_content_and_snapshots_survive_any_moves(steps: list[tuple[str, int, int]]) -> None:
    inventory = Inventory(personality="vcenter")
    stores = [
        inventory.add_datastore(Datastore(f"ds{number}", MemoryStore(f"ds{number}"))) for number in range(3)
    ]
    machine = inventory.create_machine("vm1", "ds0", [DiskSpec(SIZE)])
    machine.set_change_tracking(True)
    now = bytearray(SIZE)
    frozen: dict[str, bytes] = {}
    machine.power_on()
    for act, number, value in steps:
        known = list(machine.snapshots())
        match act:
            case "write" if machine.powered_on:
                data = bytes([value]) * 4096
                with machine.disk(2000).guest() as guest:
                    guest.write_from(number * 512, data)
                now[number * 512 : number * 512 + 4096] = data
            case "snapshot":
                frozen[machine.create_snapshot("s").moref] = bytes(now)
            case "remove" if known:
                machine.remove_snapshot(known[number % len(known)])
            case "revert" if known:
                chosen = known[number % len(known)]
                machine.revert_to_snapshot(chosen)
                now[:] = frozen[chosen.moref]
            case "relocate":
                relocation.relocate(machine, stores[number])
                assert machine.datastore is stores[number]
            case "power":
                (machine.power_off if machine.powered_on else machine.power_on)()
            case _:
                pass
    assert content(machine) == now
    # Nothing of it lies anywhere else.
    places = {path.partition("]")[0] for path in machine.files()}
    assert places == {f"[{machine.datastore.name}"}
    for store in stores:
        if store is not machine.datastore:
            assert store.files() == []
    for snapshot in list(machine.snapshots()):
        machine.revert_to_snapshot(snapshot)
        assert content(machine) == frozen[snapshot.moref]
    inventory.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["disable", "scoped", "enable", "close"]), st.sampled_from(["a", "b", "c"])
        ),
        max_size=20,
    )
)
def test_every_identity_undoes_its_own_and_no_more(steps: list[tuple[str, str]]) -> None:
    disabled = DisabledMethods()
    session = Session("key", "user", datetime(2026, 1, 1, tzinfo=UTC))
    kept: dict[str, bool] = {}
    for act, source in steps:
        match act:
            case "disable":
                disabled.disable(KEY, ["RelocateVM_Task"], source, None)
                kept[source] = True
            case "scoped":
                disabled.disable(KEY, ["RelocateVM_Task"], source, session)
                kept[source] = False
            case "enable":
                disabled.enable(KEY, ["RelocateVM_Task"], source)
                kept.pop(source, None)
            case _:
                session.close()
        living = {one for one, lasts in kept.items() if lasts or not session.closed}
        assert set(disabled.sources(KEY, "RelocateVM_Task")) == living
        assert disabled.of(KEY) == (["RelocateVM_Task"] if living else [])
        assert disabled.of(("VirtualMachine", "vm-2")) == []


def test_a_machine_whose_disks_have_one_name_does_not_move() -> None:
    inventory = Inventory(personality="vcenter")
    first = inventory.add_datastore(Datastore("ds0", MemoryStore("ds0")))
    target = inventory.add_datastore(Datastore("ds1", MemoryStore("ds1")))
    first.store.make_folder("other")
    machine = inventory.create_machine(
        "vm1", "ds0", [DiskSpec(SIZE, path="[ds0] vm1/d.vmdk"), DiskSpec(SIZE, path="[ds0] other/d.vmdk")]
    )
    try:
        relocation.relocate(machine, target)
    except ModelFault as error:
        assert "of this name" in str(error)
    else:
        raise AssertionError("two files cannot have one name")
    assert target.files() == []
    assert [disk.file for disk in machine.disks.values()] == ["[ds0] vm1/d.vmdk", "[ds0] other/d.vmdk"]
