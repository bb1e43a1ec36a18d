"""Commands that talk to a host: vms, fingerprint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdkit.cli.options import (
    ConfigOption,
    HostFlags,
    JsonOption,
    KnownHostsOption,
    LegacyTlsOption,
    host_options,
)
from vdkit.cli.output import human_size, print_json, print_note, print_table, print_text
from vdkit.cli.settings import DEFAULT_PORT, Settings, current_environment, split_host_port
from vdkit.errors import TransportError, UsageError

if TYPE_CHECKING:
    from vdkit.vsphere.model import VirtualMachine

DATA_PORT = 902


def add_to(app: typer.Typer) -> None:
    app.command("vms")(vms)
    app.command("fingerprint")(fingerprint)


@host_options
def vms(flags: HostFlags, as_json: JsonOption = False) -> None:
    """List the virtual machines of a host, their disks and whether changes are tracked.

    Example: vdkit vms --host esxi.example.org --user root --password-file ~/.esxi
    """
    from vdkit.vsphere.inventory import list_machines

    with flags.login() as session:
        machines = list_machines(session)
    if as_json:
        print_json({"machines": [_machine(vm) for vm in machines]})
        return
    rows = []
    for vm in machines:
        first = [vm.name, vm.moref, vm.power.value]
        for disk in vm.disks:
            rows.append(
                [*first, str(disk.key), disk.file, human_size(disk.capacity), disk.tracking.tracking.value]
            )
            first = ["", "", ""]
        if not vm.disks:
            rows.append([*first, "-", "no disks", "", ""])
    print_table(
        ["name", "moref", "power", "disk", "file", "capacity", "tracking"], rows, right=frozenset({5})
    )


def fingerprint(
    host: Annotated[str, typer.Argument(metavar="HOST[:PORT]", help="The ESXi host or vCenter.")],
    data_port: Annotated[
        int, typer.Option("--data-port", help="Port of the disk transport.", min=0)
    ] = DATA_PORT,
    trust: Annotated[
        bool, typer.Option("--trust", help="Record the first one as known: later commands rely on it.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="With --trust: in place of another one that is recorded.")
    ] = False,
    known_hosts: KnownHostsOption = None,
    config: ConfigOption = None,
    legacy_tls: LegacyTlsOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the thumbprints of the certificates on a host's ports 443 and 902, to compare and then to pin.

    Nothing secret is sent. Compare what it prints with the host's console before you trust it. With --trust
    that of port 443 goes into the file of known hosts; that of the data port comes with every ticket.

    Example: vdkit fingerprint esxi.example.org --trust
    """
    if replace and not trust:
        raise UsageError("fingerprint: --replace goes with --trust")
    from vdkit.net.connect import host_port
    from vdkit.net.fingerprints import fingerprints

    name, port = split_host_port(host, DEFAULT_PORT)
    found: list[dict[str, Any]] = []
    failures: list[TransportError] = []
    for number, greeted in ((port, False), (data_port, True)):
        try:
            prints = fingerprints(name, number, greeting=greeted, legacy_tls=legacy_tls)
        except TransportError as error:
            # One port may well be closed to us while the other answers; both must fail for the command to.
            failures.append(error)
            print_note(f"warning: {error}")
            continue
        found.append({"port": number, "sha256": prints.sha256, "sha1": prints.sha1})
    if not found:
        raise failures[0]
    if not as_json:
        for entry in found:
            where = host_port(name, entry["port"])
            print_text(f"{where} sha256 {entry['sha256']}")
            print_text(f"{where} sha1   {entry['sha1']}")
    done = None
    if trust:
        if found[0]["port"] != port:
            raise failures[0]
        file = Settings(current_environment(), config).known_hosts(known_hosts)
        done = _remember(file, name, port, found[0]["sha256"], replace=replace)
    if as_json:
        print_json({"host": name, "certificates": found, "known_hosts": done})


def _remember(file: Path, host: str, port: int, sha256: str, *, replace: bool) -> dict[str, str]:
    from vdkit.net.connect import host_port
    from vdkit.net.knownhosts import KnownHosts

    known = KnownHosts(file)
    before = known.find(host, port)
    done = known.remember(host, port, sha256, replace=replace)
    where = host_port(host, port)
    match done:
        case "added":
            print_note(f"{where} is trusted from now on: {file}")
        case "replaced" if before is not None:
            print_note(f"{where}: {file}, line {before.line}: {before.sha256} was replaced by {sha256}")
        case _:
            print_note(f"{where} was trusted already: {file}")
    return {"file": str(file), "done": done}


def _machine(vm: VirtualMachine) -> dict[str, Any]:
    return {
        "name": vm.name,
        "moref": vm.moref,
        "path": vm.path,
        "power": vm.power.value,
        "instance_uuid": vm.instance_uuid,
        "change_tracking": vm.change_tracking,
        "snapshots": [{"moref": s.moref, "name": s.name} for s in vm.all_snapshots()],
        "disks": [
            {
                "key": disk.key,
                "label": disk.label,
                "file": disk.file,
                "capacity": disk.capacity,
                "backing": disk.backing.value,
                "change_id": disk.change_id,
                "tracking": disk.tracking.tracking.value,
                "tracking_reason": disk.tracking.reason,
            }
            for disk in vm.disks
        ],
    }
