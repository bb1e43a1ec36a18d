"""Commands on restore points: backup, points, verify, restore."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vdkit.cli.options import (
    HostConnectionsOption,
    HostFlags,
    HostMemoryOption,
    JsonOption,
    ModeOption,
    host_options,
)
from vdkit.cli.output import human_size, job_observer, print_json, print_note, print_table, print_text
from vdkit.errors import ExitCode, PointNotFound, UsageError

if TYPE_CHECKING:
    from vdkit.backup import Point, Repository
    from vdkit.backup.verify import VerifyProgress
    from vdkit.jobs.backup import BackupResult

CompressionOption = Annotated[
    Literal["none", "zlib", "fastlz", "skipz", "auto"],
    typer.Option(
        "--compression", help="On the wire: none, zlib, fastlz, skipz, or auto: what suits the link."
    ),
]
QuiesceOption = Annotated[
    bool | None,
    typer.Option(
        "--quiesce/--no-quiesce", help="Bring the guest's file systems to rest.", show_default=False
    ),
]
CrashConsistentOption = Annotated[
    bool,
    typer.Option(
        "--quiesce-or-crash-consistent",
        "--allow-crash-consistent",
        help="As --quiesce, but go on when the guest cannot.",
    ),
]
QuiesceTimeoutOption = Annotated[
    int | None,
    typer.Option(
        "--quiesce-timeout",
        metavar="SECONDS",
        min=300,
        max=14_400,
        help="As --quiesce, in that time at most (vSphere 6.5 and later).",
    ),
]
AccessLockOption = Annotated[
    bool,
    typer.Option(
        "--access-lock/--no-access-lock",
        help="On a vCenter: let nobody move the machine to other storage meanwhile.",
    ),
]
RepositoryArgument = Annotated[
    Path, typer.Argument(metavar="REPO", help="The folder with the restore points.")
]


def add_to(app: typer.Typer) -> None:
    app.command("backup")(backup)
    app.command("points")(points)
    app.command("verify")(verify)
    app.command("restore")(restore)


@host_options
def backup(
    machine: Annotated[str, typer.Argument(metavar="VM", help="Name, inventory path, moref or UUID.")],
    to: Annotated[
        Path, typer.Option("--to", metavar="REPO", help="Folder for the restore points; made if need be.")
    ],
    level: Annotated[
        Literal["auto", "full", "inc"], typer.Option("-l", "--level", help="auto, full or inc (incremental).")
    ] = "auto",
    on_reset: Annotated[
        Literal["fail", "full", "scan"],
        typer.Option("--on-reset", help="When change tracking cannot tell the changes: fail, full, or scan."),
    ] = "fail",
    enable_tracking: Annotated[
        bool,
        typer.Option(
            "--enable-tracking/--no-enable-tracking", help="Switch change tracking on where it is off."
        ),
    ] = True,
    quiesce: QuiesceOption = None,
    or_crash_consistent: CrashConsistentOption = False,
    quiesce_timeout: QuiesceTimeoutOption = None,
    access_lock: AccessLockOption = True,
    mode: ModeOption = None,
    compression: CompressionOption = "none",
    host_memory: HostMemoryOption = None,
    host_connections: HostConnectionsOption = None,
    *,
    flags: HostFlags,
    as_json: JsonOption = False,
) -> None:
    """Make a restore point of a virtual machine: full at first, then what changed block tracking names.

    Example: vdkit backup web01 --to /backup/vms
    """
    from vdkit.backup import Level, ResetPolicy
    from vdkit.jobs.backup import backup_machine

    if quiesce is False and (or_crash_consistent or quiesce_timeout is not None):
        raise UsageError("backup: --no-quiesce does not go with the options of quiescing")
    repository = _repository(to, create=True)
    with (
        flags.login() as session,
        job_observer(as_json=as_json) as observer,
    ):
        result = backup_machine(
            session,
            machine,
            repository,
            observer,
            level=Level(level),
            on_reset=ResetPolicy(on_reset),
            enable_tracking=enable_tracking,
            quiesce=quiesce or or_crash_consistent or quiesce_timeout is not None,
            allow_crash_consistent=or_crash_consistent,
            quiesce_timeout=quiesce_timeout,
            access_lock=access_lock,
            modes=flags.transports(mode),
            compression=compression,
            budget=flags.budget(host_memory, host_connections),
        )
    _report(result, as_json=as_json)


def points(
    repository: RepositoryArgument,
    machine: Annotated[
        str | None, typer.Option("--vm", help="Only the points of this machine (name or UUID).")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List restore points.

    Example: vdkit points /backup/vms --vm web01
    """
    broken: list[str] = []
    opened = _repository(repository)
    found = opened.points(machine, invalid=lambda error: broken.append(str(error)))
    if machine is not None and not found and not broken:
        raise PointNotFound(
            f"{opened.name}: there is no restore point of a machine {machine!r}",
            remedy="vdkit points without --vm lists those that there are",
        )
    if as_json:
        print_json({"points": [_point(point) for point in found], "unreadable": broken})
    else:
        _print_points(found)
    for text in broken:
        print_note(f"warning: {text}")
    if broken:
        raise typer.Exit(ExitCode.VERIFY_FAILED)


def verify(
    repository: RepositoryArgument,
    point: Annotated[
        str | None, typer.Argument(help="A point's id, or latest; all of them if not given.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Read restore points again and compare them with their manifests; names the first bad range.

    Example: vdkit verify /backup/vms latest
    """
    from vdkit.backup import verify as verify_points

    opened = _repository(repository)
    chosen = [_find(opened, point)] if point else None
    with job_observer(as_json=as_json) as observer:

        def tell(state: VerifyProgress) -> None:
            observer.progress("verify", state.done, state.total)

        report = verify_points(opened, chosen, progress=tell)
    if report.ok and not report.points:
        # "All is well" would be heard by whoever named the wrong folder.
        raise _no_points(opened)
    if as_json:
        print_json(
            {
                "message_type": "summary",
                "ok": report.ok,
                "points": report.points,
                "files": report.files,
                "bytes_stored": report.stored,
                "bytes_checked": report.checked,
                "damages": [vars(damage) for damage in report.damages],
            }
        )
    report.check()
    if not as_json:
        print_text(
            f"{report.points} points verified: {report.files} files, {human_size(report.stored)} read, "
            f"{human_size(report.checked)} of disk checked: all as the manifests say"
        )


@host_options
def restore(
    repository: RepositoryArgument,
    point: Annotated[str, typer.Argument(help="A point's id (or its start), or latest.")],
    to: Annotated[
        str | None, typer.Option("--to", metavar="NEWVM", help="Make a new virtual machine.")
    ] = None,
    to_file: Annotated[
        Path | None, typer.Option("--to-file", help="Write one disk to a file instead.")
    ] = None,
    disk: Annotated[int | None, typer.Option("--disk", help="With --to-file: the disk's device key.")] = None,
    type_: Annotated[
        str, typer.Option("-O", "--type", help="With --to-file: raw, monolithicSparse, streamOptimized, ...")
    ] = "monolithicSparse",
    datastore: Annotated[
        str | None, typer.Option("--datastore", help="Where to; the original's if not given.")
    ] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Read back what was written and compare.")] = False,
    mode: ModeOption = None,
    compression: CompressionOption = "none",
    host_memory: HostMemoryOption = None,
    host_connections: HostConnectionsOption = None,
    *,
    flags: HostFlags,
    as_json: JsonOption = False,
) -> None:
    """Restore a point to a new virtual machine (left powered off) or one of its disks to a file.

    Example: vdkit restore /backup/vms latest --to web01-restored
    """
    if (to is None) == (to_file is None):
        raise UsageError("restore: give one of --to NEWVM and --to-file FILE")
    opened = _repository(repository)
    chosen = _find(opened, point)
    with job_observer(as_json=as_json) as observer:
        if to_file is not None:
            from vdkit.jobs.restore import restore_file

            key = disk if disk is not None else _only_disk(chosen)
            modes: Mapping[int, str] = {}
            written = restore_file(opened, chosen, key, to_file, observer, to=type_, verify=verify)
            target = str(to_file)
        else:
            from vdkit.jobs.restore import restore_machine

            assert to is not None
            with flags.login() as session:
                result = restore_machine(
                    session,
                    opened,
                    chosen,
                    to,
                    observer,
                    datastore=datastore,
                    modes=flags.transports(mode),
                    compression=compression,
                    budget=flags.budget(host_memory, host_connections),
                    verify=verify,
                )
            written, modes = result.written, result.modes
            target = f"{result.machine.name} ({result.machine.moref})"
    _report_restore(chosen, target, written, modes, as_json=as_json)


def _report_restore(
    point: Point, target: str, written: int, modes: Mapping[int, str], *, as_json: bool
) -> None:
    if as_json:
        print_json(
            {
                "message_type": "summary",
                "point": point.id,
                "target": target,
                "bytes_written": written,
                "transport_modes": {str(key): mode for key, mode in modes.items()},
            }
        )
    else:
        over = f" over {_modes(modes)}" if modes else ""
        print_text(f"{target}: restored from {point.id}, {human_size(written)} written{over}")


def _report(result: BackupResult, *, as_json: bool) -> None:
    """Print what a backup made; disks left out and warnings have exit codes of their own."""
    if as_json:
        print_json(
            {
                "message_type": "summary",
                "point": _point(result.point),
                "transport_modes": {str(key): mode for key, mode in result.modes.items()},
                "skipped": list(result.skipped),
                "warnings": list(result.warnings),
            }
        )
    else:
        _print_points([result.point])
        print_text(f"read over {_modes(result.modes)}")
    if result.skipped:
        raise typer.Exit(ExitCode.SOURCE_INCOMPLETE)
    if result.warnings:
        raise typer.Exit(ExitCode.FAILED)


def _modes(used: Mapping[int, str]) -> str:
    """``nbdssl``, or which disk over which where they differ."""
    names = sorted(set(used.values()))
    if len(names) < 2:
        return "".join(names) or "nothing"
    return ", ".join(f"{mode} (disk {key})" for key, mode in sorted(used.items()))


def _repository(path: Path, *, create: bool = False) -> Repository:
    from vdkit.backup import Repository
    from vdkit.block.local import FolderStore
    from vdkit.errors import RepositoryMissing, from_os_error

    if not create:
        if not path.is_dir():
            raise RepositoryMissing(f"{path}: there is no repository here", remedy="check the path")
        return Repository.open(FolderStore(path))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise from_os_error(error, f"making the repository {path}") from error
    return Repository.open_or_create(FolderStore(path))


def _no_points(repository: Repository) -> PointNotFound:
    return PointNotFound(
        f"{repository.name}: there is no restore point yet", remedy="check the path, or run vdkit backup"
    )


def _find(repository: Repository, text: str) -> Point:
    if text != "latest":
        return repository.find(text)
    found = repository.points()
    if not found:
        raise _no_points(repository)
    if len({point.manifest.vm.uuid for point in found}) > 1:
        raise UsageError(
            f"{repository.name}: holds points of several machines", remedy="name the point by its id"
        )
    return found[-1]


def _only_disk(point: Point) -> int:
    keys = [disk.key for disk in point.manifest.disks]
    if len(keys) > 1:
        raise UsageError(
            f"point {point.id} holds {len(keys)} disks",
            remedy=f"pass --disk, one of {', '.join(map(str, keys))}",
        )
    return keys[0]


def _print_points(found: list[Point]) -> None:
    print_table(
        ["point", "machine", "kind", "changed", "read", "stored", "seconds"],
        [
            [
                point.id,
                point.manifest.vm.name,
                point.manifest.kind.value,
                human_size(sum(disk.changed for disk in point.manifest.disks)),
                human_size(sum(disk.read for disk in point.manifest.disks)),
                human_size(sum(disk.stored for disk in point.manifest.disks)),
                f"{sum(disk.seconds for disk in point.manifest.disks):.1f}",
            ]
            for point in found
        ],
        right=frozenset({3, 4, 5, 6}),
    )


def _point(point: Point) -> dict[str, Any]:
    manifest = point.manifest
    return {
        "id": point.id,
        "machine": manifest.vm.name,
        "machine_uuid": manifest.vm.uuid,
        "kind": manifest.kind.value,
        "parent": manifest.parent.id if manifest.parent else None,
        "created": manifest.created.isoformat(),
        "seconds": (manifest.finished - manifest.created).total_seconds(),
        "consistency": manifest.consistency.value,
        "disks": [
            {
                "key": disk.key,
                "label": disk.label,
                "capacity": disk.capacity,
                "kind": disk.kind.value,
                "reason": disk.reason,
                "changed_bytes": disk.changed,
                "read_bytes": disk.read,
                "stored_bytes": disk.stored,
                "zero_bytes": disk.zero,
                "file": disk.file.name,
            }
            for disk in manifest.disks
        ],
    }
