"""The simulated host: ``vdkit sim`` runs one, ``vdkit sim guest`` plays the guest of one of its machines."""

from __future__ import annotations

import inspect
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from vdkit.cli.options import HostFlags, PasswordFdOption, PasswordFileOption, host_options
from vdkit.cli.output import print_note, print_text
from vdkit.cli.passwords import ask_password, read_password_descriptor, read_password_file
from vdkit.cli.settings import split_host_port
from vdkit.errors import UsageError, VixError

if TYPE_CHECKING:
    from vdkit.net.secret import Secret
    from vdkit.sim.host import SimulatedHost
    from vdkit.vsphere.model import VirtualMachine

DEFAULT_LISTEN = "127.0.0.1:8989"


def add_to(app: typer.Typer) -> None:
    sim = typer.Typer(
        help="Run a simulated ESXi or vCenter host that serves real disks.", rich_markup_mode=None
    )
    sim.callback(invoke_without_command=True)(run_host)
    sim.command("guest")(guest)
    # Left to itself a group takes only the first paragraph, without the example.
    app.add_typer(sim, name="sim", help=inspect.getdoc(run_host))


def run_host(
    context: typer.Context,
    datastore: Annotated[
        list[Path] | None,
        typer.Option(
            "--datastore", help="Folder that becomes a datastore; each folder in it with a VMDK is a VM."
        ),
    ] = None,
    scenario: Annotated[
        Path | None,
        typer.Option("--scenario", help="TOML file with hosts, machines and faults; flags go before it."),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            "--listen",
            metavar="HOST:PORT",
            help=f"Port 0 takes a free one; {DEFAULT_LISTEN} unless a scenario says otherwise.",
        ),
    ] = None,
    data_port: Annotated[
        int | None, typer.Option("--data-port", help="Port for disk data; 0, the default, takes a free one.")
    ] = None,
    personality: Annotated[
        Literal["esx", "vcenter"] | None,
        typer.Option("--personality", help="Answer as an ESXi host (the default) or as a vCenter."),
    ] = None,
    hosts: Annotated[
        int | None, typer.Option("--hosts", help="ESXi hosts of a vCenter, each with a data port; 1.")
    ] = None,
    user: Annotated[str | None, typer.Option("--user", help="The account that may log in; root.")] = None,
    password_file: PasswordFileOption = None,
    password_fd: PasswordFdOption = None,
    power_on: Annotated[bool, typer.Option("--power-on", help="Start every machine.")] = False,
) -> None:
    """Run a simulated ESXi or vCenter host until interrupted; prints the settings for clients.

    Without a password file a password is made and printed with the settings.

    A scenario file describes machines, several hosts, limits and every fault that there is; the
    documentation of the simulated host lists them.

    Example: vdkit sim --datastore ./ds --listen 127.0.0.1:8989

    Example: vdkit sim --scenario vcenter.toml
    """
    if context.invoked_subcommand is not None:
        return
    if not datastore and scenario is None:
        raise UsageError(
            "sim: neither a datastore nor a scenario given",
            remedy="pass --datastore FOLDER or --scenario FILE",
        )
    address = port = None
    if listen is not None or scenario is None:
        address, port = split_host_port(listen or DEFAULT_LISTEN, 443, lowest_port=0)
    from vdkit.sim.scenario_file import EMPTY, read_scenario

    described = EMPTY if scenario is None else read_scenario(scenario)
    host = described.build(
        listen=address,
        port=port,
        data_port=data_port,
        personality=personality,
        hosts=hosts,
        user=user,
        password=_given_password(password_file, password_fd),
        folders=tuple(datastore or ()),
    )
    _serve(host, power_on=power_on, given=password_fd if password_file is None else password_file)


def _given_password(file: Path | None, descriptor: int | None) -> Secret | None:
    if descriptor is not None:
        return read_password_descriptor(descriptor)
    return None if file is None else read_password_file(file)


def _serve(host: SimulatedHost, *, power_on: bool, given: Path | int | None) -> None:
    """Run it until a signal says otherwise. Only a password that was made here is printed: one that was
    ``given`` in a file or by a descriptor is not for the output, and the file is named.
    """
    named = {"VDKIT_PASSWORD_FILE": str(given.absolute())} if isinstance(given, Path) else {}
    # Blocked before any thread starts, so that none of them takes the signal away from sigwait.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    with host:
        if power_on:
            _power_on(host)
        for key, value in (host.environment() | named).items():
            if key.endswith("_PASSWORD") and given is not None:
                continue
            print_text(f"{key}={_quoted(value)}")
        print_text(f"# thumbprint (sha256) {host.thumbprint_sha256}")
        for esx in host.inventory.places.hosts:
            server = host.data_port(esx.name)
            several = f" of {esx.name} at {server.host}" if len(host.inventory.places.hosts) > 1 else ""
            print_text(f"# data port {server.port}{several}")
        print_text("# ready; interrupt to stop")
        sys.stdout.flush()
        _wait_for_signal()
    print_note("stopped")


def _power_on(host: SimulatedHost) -> None:
    """Start every machine; one that cannot run must not keep the others, and the host, from it."""
    for machine in host.inventory.machines:
        try:
            if not machine.powered_on:
                machine.power_on()
        except VixError as error:
            print_note(f"warning: {machine.name} stays off: {error}")


@host_options
def guest(
    machine: Annotated[
        str, typer.Argument(metavar="VM", help="Name or moref of a machine of the simulated host.")
    ],
    script: Annotated[
        Path | None,
        typer.Option("--script", help="debugfs commands to run in the disk's ext2/3/4 file system."),
    ] = None,
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Print the SHA-256 of the disk's content now.")
    ] = False,
    disk: Annotated[int, typer.Option("--disk", help="Device key of the disk.")] = 2000,
    *,
    flags: HostFlags,
) -> None:
    """Play the guest of a machine of a simulated host: change files on its disk, or hash the disk.

    The writes go through the machine's running disk, so snapshots and change tracking see them.

    Example: vdkit sim guest demo --script changes.debugfs
    """
    if (script is None) == (not sha256):
        raise UsageError("sim guest: give either --script FILE or --sha256")
    from vdkit.backup import content_sha256
    from vdkit.sim.guest import GuestFileSystem
    from vdkit.sim.guest_door import GuestDoor
    from vdkit.vsphere.inventory import find_machine

    settings = flags.resolve()
    password = settings.password or ask_password(settings.user, settings.host)
    with flags.login() as session:
        vm: VirtualMachine = find_machine(session, machine)
    keys = [known.key for known in vm.disks]
    if disk not in keys:
        raise UsageError(
            f"machine {vm.name} has no disk {disk}", remedy=f"pass --disk, one of {', '.join(map(str, keys))}"
        )
    with GuestDoor(
        settings.host,
        settings.port,
        vm.moref,
        disk,
        user=settings.user,
        password=password,
        trust=settings.trust,
    ) as device:
        if sha256:
            print_text(content_sha256(device))
            return
        assert script is not None
        with GuestFileSystem(device) as files:
            changed = files.run(_read_script(script))
        print_text(f"{vm.name}: {changed} bytes of disk {disk} written by the guest")


def _read_script(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"script {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"script {path}: not UTF-8 text") from error
    return [line for line in text.splitlines() if line.strip()]


def _quoted(value: str) -> str:
    """A value that a POSIX shell reads back as it is."""
    import shlex

    return shlex.quote(value)


def _wait_for_signal() -> None:
    """Return when an interrupt or a termination asks for it; SIGTERM is what service managers send."""
    waited = {signal.SIGINT, signal.SIGTERM}
    signal.sigwait(waited)
