"""A simulated host as a TOML file: what it is, what it has, and what goes wrong.

::

    [host]                      # personality, listen, port, hosts, certificates, user
    [[datastore]]               # name, folder (in memory without one), kind
    [[machine]]                 # name, count, folder, host, what it is and does
    [[machine.disk]]            # size or copy, thin, content
    [faults]                    # every field of Scenario
    [faults.nfc]                # every field of NfcFaults

Paths are relative to the file. Nothing of it reaches outside: no key names a program, and what is copied is
only read.
"""

from __future__ import annotations

import random
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vdkit import vmdk
from vdkit.block.copy import copy
from vdkit.block.device import BlockDevice, WritableDevice
from vdkit.block.local import FolderStore, open_file
from vdkit.block.memory import MemoryStore
from vdkit.errors import UsageError
from vdkit.net.secret import Secret
from vdkit.sim.certificates import Certificate
from vdkit.sim.clock import Clock
from vdkit.sim.controllers import PLAIN, Controller, DiskOptions
from vdkit.sim.datastore import Datastore
from vdkit.sim.faults import ModelFault
from vdkit.sim.host import SimulatedHost, host_names
from vdkit.sim.inventory import Inventory
from vdkit.sim.machine import Machine
from vdkit.sim.scenario import DEFAULT_API_VERSION, Scenario
from vdkit.sim.scenario_values import Source, as_table, check_keys, fill, size_in_bytes
from vdkit.sim.snapshot import DiskSpec, MachineConfig

#: Bytes of a file; machines that it makes.
MAX_FILE = 1 << 20
MAX_MACHINES = 5_000
#: Names that an error lists.
_NAMED = 5
#: A pattern fills every second block of this many bytes.
PATTERN_BLOCK = 64 << 10


@dataclass(frozen=True)
class HostTable:
    """``[host]``; names as :class:`~vdkit.sim.host.SimulatedHost` has them."""

    personality: Literal["esx", "vcenter"] = "esx"
    api_version: str = DEFAULT_API_VERSION
    listen: str = "127.0.0.1"
    port: int = 0
    data_port: int = 0
    #: ESXi hosts of a vCenter.
    hosts: int = 1
    user: str = "root"
    #: Of the management port.
    certificate: Certificate | None = None
    #: Of the data ports, in the order of the hosts; those without get one that is made. A single host uses
    #: its one certificate for both.
    data_certificates: tuple[Certificate, ...] = ()


@dataclass(frozen=True)
class DatastoreTable:
    """``[[datastore]]``; without ``folder`` it is in memory."""

    name: str
    folder: str | None = None
    kind: Literal["VMFS", "NFS", "NFS41", "vsan", "VVOL"] = "VMFS"


@dataclass(frozen=True)
class DiskTable:
    """``[[machine.disk]]``; ``copy`` is a VMDK, or any other file taken as the bytes of a disk."""

    size: int = 0
    thin: bool = True
    content: Literal["empty", "pattern"] = "empty"
    copy: str | None = None
    controller: Controller | None = None
    options: DiskOptions = PLAIN


@dataclass(frozen=True)
class MachineTable:
    """``[[machine]]``; with ``count`` above 1 the machines are ``name-001`` and so on."""

    name: str
    count: int = 1
    #: Below the folder of machines: ``clients/berlin``.
    folder: str = ""
    #: The ESXi host, by name; without it the hosts in turn.
    host: str | None = None
    datastore: str | None = None
    powered_on: bool = False
    change_tracking: bool = False
    template: bool = False
    hardware_version: int = 19
    #: Names of snapshots, each the child of the one before.
    snapshots: tuple[str, ...] = ()
    disks: tuple[DiskTable, ...] = ()


@dataclass(frozen=True)
class ScenarioFile:
    """What a file says. :meth:`build` makes the host; it has not been started then."""

    path: Path
    host: HostTable
    datastores: tuple[DatastoreTable, ...]
    machines: tuple[MachineTable, ...]
    faults: Scenario = field(default_factory=Scenario)

    def build(
        self,
        *,
        listen: str | None = None,
        port: int | None = None,
        data_port: int | None = None,
        personality: str | None = None,
        hosts: int | None = None,
        user: str | None = None,
        password: str | Secret | None = None,
        folders: tuple[Path, ...] = (),
        certificate: Certificate | None = None,
        clock: Clock | None = None,
    ) -> SimulatedHost:
        """What is given here goes before what the file says; ``folders`` are further datastores.

        Raises UsageError, and StoreError for what cannot be read or written.
        """
        table = self.host
        inventory = Inventory(
            personality=personality or table.personality,
            clock=clock,
            host_names=host_names(table.hosts if hosts is None else hosts),
        )
        host = SimulatedHost(
            inventory,
            listen=table.listen if listen is None else listen,
            port=table.port if port is None else port,
            nfc_port=table.data_port if data_port is None else data_port,
            user=user or table.user,
            password=password,
            scenario=replace(self.faults, api_version=table.api_version),
            certificate=table.certificate or certificate,
            host_certificates=table.data_certificates,
        )
        try:
            self._fill(inventory, folders)
            self._check_names(inventory)
        except BaseException:
            inventory.close()
            raise
        return host

    def _fill(self, inventory: Inventory, folders: tuple[Path, ...]) -> None:
        for one in self.datastores:
            inventory.add_datastore(self._datastore(one))
        for folder in folders:
            inventory.add_folder(folder, f"datastore{len(inventory.datastores) + 1}")
        if self.machines and not inventory.datastores:
            inventory.add_datastore(self._datastore(DatastoreTable("datastore1")))
        for number, machine in enumerate(self.machines):
            try:
                for name in _names(machine):
                    _Maker(inventory, self.path.parent, machine).make(name)
            except ModelFault as fault:
                raise UsageError(f"{self.path}: machine[{number}] ({machine.name}): {fault}") from fault

    def _check_names(self, inventory: Inventory) -> None:
        """A fault of something that is not there would never come, and nobody would know."""
        hosts = [host.name for host in inventory.places.hosts]
        machines = [machine.name for machine in inventory.machines]
        faults = self.faults
        for key, named, known, what in (
            ("hosts_in_maintenance", faults.hosts_in_maintenance, hosts, "ESXi host"),
            ("hosts_disconnected", faults.hosts_disconnected, hosts, "ESXi host"),
            ("nfc_memory_limits", frozenset(faults.nfc_memory_limits), hosts, "ESXi host"),
            ("relocating", faults.relocating, machines, "machine"),
        ):
            for name in sorted(named - set(known)):
                there = ", ".join(known[:_NAMED]) + ("..." if len(known) > _NAMED else "")
                raise UsageError(
                    f"{self.path}: faults.{key}: there is no {what} {name!r}",
                    remedy=f"those that there are: {there or 'none'}",
                )

    def _datastore(self, table: DatastoreTable) -> Datastore:
        if table.folder is None:
            return Datastore(table.name, MemoryStore(table.name), kind=table.kind)
        folder = self.path.parent / table.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{self.path}: datastore {table.name}: {folder}: {error.strerror}") from error
        return Datastore.from_folder(table.name, folder, kind=table.kind)


def _names(machine: MachineTable) -> list[str]:
    if machine.count == 1:
        return [machine.name]
    width = max(3, len(str(machine.count)))
    return [f"{machine.name}-{number:0{width}}" for number in range(1, machine.count + 1)]


class _Maker:
    """Makes the machines of one table, unless the datastore holds one of that name from before."""

    def __init__(self, inventory: Inventory, base: Path, table: MachineTable) -> None:
        self._inventory = inventory
        self._base = base
        self._table = table

    def make(self, name: str) -> None:
        table, inventory = self._table, self._inventory
        known = next((one for one in inventory.machines if one.name == name), None)
        machine = known or self._create(name)
        inventory.places.put(machine, inventory.places.folder_at(table.folder))
        if table.host is not None:
            inventory.move(machine, table.host)
        if known is not None:
            return
        if table.powered_on:
            machine.power_on()
        for snapshot in table.snapshots:
            machine.create_snapshot(snapshot)
        if table.template:
            machine.set_template(True)

    def _create(self, name: str) -> Machine:
        table, inventory = self._table, self._inventory
        config = replace(MachineConfig.new(name), hardware_version=table.hardware_version)
        sources = [None if disk.copy is None else self._open(disk.copy) for disk in table.disks]
        try:
            specs = [
                DiskSpec(
                    capacity=disk.size or (0 if source is None else source.capacity),
                    thin=disk.thin,
                    controller=disk.controller,
                    options=disk.options,
                )
                for disk, source in zip(table.disks, sources, strict=True)
            ]
            datastore = table.datastore or inventory.datastores[0].name
            machine = inventory.create_machine(name, datastore, specs, config=config)
            for key, disk, source in zip(list(machine.disks), table.disks, sources, strict=True):
                if source is not None or disk.content == "pattern":
                    self._write(machine, key, source)
            if table.change_tracking:
                # Only now, so that the first map holds what was just written.
                machine.set_change_tracking(True)
        finally:
            for source in sources:
                if source is not None:
                    source.close()
        return machine

    def _open(self, name: str) -> BlockDevice:
        path = self._base / name
        if path.suffix.lower() != ".vmdk":
            return open_file(path)
        return vmdk.open_disk(FolderStore(str(path.parent)), path.name)

    def _write(self, machine: Machine, key: int, source: BlockDevice | None) -> None:
        disk = machine.disk(key)
        with vmdk.open_disk(disk.datastore.store, disk.leaf, writable=True, durable=False) as target:
            if source is None:
                write_pattern(target, f"{machine.name}:{key}")
            elif source.capacity == target.capacity:
                copy(source, target)
            else:
                raise UsageError(
                    f"{source.name} has {source.capacity} bytes, and the disk {target.capacity}",
                    remedy="leave out size: the disk gets that of its copy",
                )


def write_pattern(target: WritableDevice, seed: str) -> None:
    """Every second block gets bytes that depend on ``seed`` and on its place; the others stay empty."""
    for offset in range(0, target.capacity, 2 * PATTERN_BLOCK):
        size = min(PATTERN_BLOCK, target.capacity - offset)
        target.write_from(offset, random.Random(f"{seed}:{offset}").randbytes(size))


#: Nothing but a host: what there is to say comes from the caller.
EMPTY = ScenarioFile(Path(), HostTable(), (), ())

# -- reading -----------------------------------------------------------------------------------------


def read_scenario(path: str | Path) -> ScenarioFile:
    """Raises UsageError that names the file, the line and the key."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise UsageError(f"scenario {path}: cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE:
        raise UsageError(f"scenario {path}: larger than {MAX_FILE} bytes")
    try:
        text = data.decode("utf-8")
        table = tomllib.loads(text)
    except UnicodeDecodeError as error:
        raise UsageError(f"scenario {path}: not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"scenario {path}: not TOML: {error}") from error
    return parse_scenario(path, text, table)


def parse_scenario(path: Path, text: str, table: dict[str, Any]) -> ScenarioFile:
    """``table`` is what TOML makes of ``text``."""
    source = Source(f"scenario {path}", text)
    check_keys(source, "", table, ("host", "datastore", "machine", "faults"))
    host = fill(HostTable, source, "host", table.get("host", {}))
    datastores = [
        _required(DatastoreTable, source, at, one) for at, one in _tables(source, "datastore", table)
    ]
    machines = [_machine(source, at, one) for at, one in _tables(source, "machine", table)]
    total = sum(machine.count for machine in machines)
    if total > MAX_MACHINES:
        raise source.refuse("machine", f"{total} machines; {MAX_MACHINES} are the most")
    # The version is the host's own, and said there.
    faults = as_table(source, "faults", table.get("faults", {}))
    if "api_version" in faults:
        raise source.refuse("faults.api_version", "the version belongs to the table host")
    scenario = fill(Scenario, source, "faults", faults)
    return ScenarioFile(path, host, tuple(datastores), tuple(machines), scenario)


def _tables(source: Source, name: str, table: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    found = table.get(name.rpartition(".")[2], [])
    if not isinstance(found, list):
        raise source.refuse(name, f"several may be there: write [[{name}]]")
    return [
        (f"{name}[{number}]", as_table(source, f"{name}[{number}]", one)) for number, one in enumerate(found)
    ]


def _required(kind: type[DatastoreTable], source: Source, at: str, table: dict[str, Any]) -> DatastoreTable:
    if "name" not in table:
        raise source.refuse(at, "name is missing")
    return fill(kind, source, at, table)


def _machine(source: Source, at: str, table: dict[str, Any]) -> MachineTable:
    if "name" not in table:
        raise source.refuse(at, "name is missing")
    known = [key for key in MachineTable.__dataclass_fields__ if key != "disks"]
    check_keys(source, at, table, [*known, "disk"])
    disks = tuple(_disk(source, where, one) for where, one in _tables(source, f"{at}.disk", table))
    plain = {key: value for key, value in table.items() if key != "disk"}
    made = replace(fill(MachineTable, source, at, plain, skip=("disks",)), disks=disks)
    if made.count < 1:
        raise source.refuse(f"{at}.count", f"{made.count} machines")
    return made


def _disk(source: Source, at: str, table: dict[str, Any]) -> DiskTable:
    size = size_in_bytes(source, f"{at}.size", table["size"]) if "size" in table else 0
    plain = {key: value for key, value in table.items() if key != "size"}
    made = replace(fill(DiskTable, source, at, plain, skip=("size",)), size=size)
    if not size and made.copy is None:
        raise source.refuse(at, "neither size nor copy is given")
    return made
