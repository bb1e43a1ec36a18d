"""The command that checks and repairs local disks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdkit.cli.diskoptions import AllowOption, UsageExitsWithOne, errors_exit_with
from vdkit.cli.options import JsonOption
from vdkit.cli.output import human_size, job_observer, print_json, print_note, print_text
from vdkit.errors import NotSupported, UsageError

if TYPE_CHECKING:
    from vdkit.block.local import FolderStore
    from vdkit.block.store import Store
    from vdkit.vmdk.check import CheckProgress, CheckReport, Finding, RepairReport


DamagedArgument = Annotated[
    Path | None, typer.Argument(help="A VMDK, which does not have to open.", readable=False)
]
DeepOption = Annotated[bool, typer.Option("--deep", help="Unpack every grain of a stream.")]
SingleLinkOption = Annotated[bool, typer.Option("--single-link", help="Leave the parents out.")]
RepairOption = Annotated[
    bool, typer.Option("--repair", help="Mend the disk: with --to, --in-place or --dry-run.")
]
ToOption = Annotated[
    Path | None,
    typer.Option("--to", metavar="NEW", help="Make a repaired copy of this name.", readable=False),
]
InPlaceOption = Annotated[
    bool, typer.Option("--in-place", help="Change the disk itself, and keep what was there.")
]
UndoOption = Annotated[
    Path | None,
    typer.Option(
        "--undo", metavar="FILE", help="Where --in-place keeps it [the name with .undo].", readable=False
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Only tell what would be done.")]
UndoRepairOption = Annotated[
    Path | None,
    typer.Option(
        "--undo-repair",
        metavar="FILE",
        help="Take back a repair in place, from its undo file.",
        readable=False,
    ),
]
DuplicateOption = Annotated[
    str, typer.Option("--duplicates", help="Grains with two users: clone or keep-first.")
]
AcceptLossOption = Annotated[
    bool, typer.Option("--accept-loss", help="Go on without tables, extent files or ends that are lost.")
]
RebuildHeaderOption = Annotated[
    bool, typer.Option("--rebuild-header", help="Replace a header of an unknown version.")
]
FixCidOption = Annotated[bool, typer.Option("--fix-cid", help="Take the parent's present content id.")]
TidyOption = Annotated[bool, typer.Option("--tidy", help="Also mend what is only noted.")]
ParentOption = Annotated[
    str | None, typer.Option("--parent", help="Name of the parent, for the lost descriptor of a child.")
]
ParentCidOption = Annotated[
    str | None, typer.Option("--parent-cid", metavar="CID", help="Its content id, 8 hexadecimal digits.")
]
CreateTypeOption = Annotated[
    str | None, typer.Option("--create-type", help="Type, for the lost descriptor of a flat disk.")
]
ForceOption = Annotated[
    bool, typer.Option("--force", help="Repair the parent of other disks; undo although it was changed.")
]


def add_to(app: typer.Typer) -> None:
    app.command("check", cls=UsageExitsWithOne)(check)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What ``--repair`` is to do."""

    target: Path | None
    in_place: bool
    undo: Path | None
    dry_run: bool
    options: dict[str, Any]


def check(
    disk: DamagedArgument = None,
    deep: DeepOption = False,
    single_link: SingleLinkOption = False,
    repair: RepairOption = False,
    to: ToOption = None,
    in_place: InPlaceOption = False,
    undo: UndoOption = None,
    dry_run: DryRunOption = False,
    undo_repair: UndoRepairOption = None,
    duplicates: DuplicateOption = "clone",
    accept_loss: AcceptLossOption = False,
    rebuild_header: RebuildHeaderOption = False,
    fix_cid: FixCidOption = False,
    tidy: TidyOption = False,
    parent: ParentOption = None,
    parent_cid: ParentCidOption = None,
    create_type: CreateTypeOption = None,
    force: ForceOption = False,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the structures of a disk and of its parents; with --repair mend them.

    Nothing is written in place unless asked. The exit codes are qemu-img's: 0 clean, 1 the check could not be
    completed, 2 corrupt, 3 leaks only, 63 not supported; after a repair they are those of the repaired disk.

    Example: vdkit check vm/vm.vmdk --repair --to vm/repaired.vmdk
    """
    from vdkit.vmdk.check import check_exit_code

    options: dict[str, Any] = {
        "accept_loss": accept_loss,
        "rebuild_header": rebuild_header,
        "fix_cid": fix_cid,
        "tidy": tidy,
        "parent_name": parent,
        "create_type": create_type,
        "force": force,
    }
    wanted = _Wanted(to, in_place, undo, dry_run, options)
    with errors_exit_with(check_exit_code):
        if undo_repair is not None:
            if disk is not None or repair:
                raise UsageError(
                    "--undo-repair needs its file and nothing else",
                    remedy="for example: vdkit check --undo-repair disk.vmdk.undo",
                )
            _undo(undo_repair, force=force, as_json=as_json)
            return
        if disk is None:
            raise UsageError("say which disk to check", remedy="for example: vdkit check disk.vmdk")
        if not repair:
            if to is not None or in_place or dry_run or undo is not None:
                raise UsageError("--to, --in-place, --undo and --dry-run go with --repair")
            code = _check(disk, allow_path or [], deep=deep, single_link=single_link, as_json=as_json)
        else:
            options["duplicates"] = _duplicates(duplicates)
            options["parent_cid"] = _cid(parent_cid)
            code = _repair(disk, wanted, allow_path or [], as_json=as_json)
    if code:
        raise typer.Exit(code)


def _at(disk: Path) -> tuple[FolderStore, str]:
    from vdkit.disklib.hosted import split_path
    from vdkit.disklib.opening import detect

    if detect(disk) == "raw" and disk.exists() and not _may_be_damaged(disk):
        raise NotSupported(f"{disk}: a raw image has no structures to check")
    return split_path(disk)


def _may_be_damaged(disk: Path) -> bool:
    """A hosted sparse extent whose first bytes are gone still shows what it was."""
    from vdkit.block.local import open_file
    from vdkit.vmdk.inspect.file import form_of

    with open_file(disk) as file:
        return form_of(file) != "unknown"


def _duplicates(text: str) -> Any:
    from vdkit.vmdk.check import Duplicates

    try:
        return Duplicates(text)
    except ValueError as error:
        raise UsageError(f"--duplicates {text!r} is neither clone nor keep-first") from error


def _cid(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        value = int(text, 16)
    except ValueError:
        value = -1
    if not 0 <= value < 1 << 32:
        raise UsageError(f"--parent-cid {text!r} is not up to 8 hexadecimal digits")
    return value


def _check(disk: Path, allow_paths: list[str], *, deep: bool, single_link: bool, as_json: bool) -> int:
    from vdkit.vmdk.check import check_disk

    store, name = _at(disk)
    with job_observer(as_json=as_json) as observer:

        def tell(state: CheckProgress) -> None:
            if not as_json:  # one document
                observer.progress(f"check {Path(state.place).name}", state.done, state.total)

        report = check_disk(
            store, name, allow_paths=allow_paths, single_link=single_link, deep=deep, progress=tell
        )
    if as_json:
        print_json({**report.as_json(), "exit_code": report.exit_code})
    else:
        _print_report(report)
    return report.exit_code


def _print_report(report: CheckReport) -> None:
    for finding in report.findings:
        _print_finding(finding)
    shown = len(report.findings)
    total = sum(report.counts.values())
    if total > shown:
        print_text(f"... and {total - shown} more of these kinds")
    print_text(_verdict(report))


def _print_finding(finding: Finding) -> None:
    offset = "" if finding.offset is None else f", byte {finding.offset}"
    print_text(
        f"{finding.severity.value} {finding.code}: {Path(finding.place).name}{offset}: {finding.message}"
    )
    if finding.start is not None and finding.length is not None:
        print_text(f"    bytes {finding.start} to {finding.start + finding.length} of the disk are affected")
    if finding.repair:
        print_text(f"    repair: {finding.repair}")


def _verdict(report: CheckReport) -> str:
    allocated = sum(file.allocated for file in report.files)
    grains = sum(file.grains for file in report.files)
    use = f" {allocated} of {grains} grains are allocated." if grains else ""
    match report.verdict.value:
        case "clean":
            return f"{report.name}: no errors were found.{use}"
        case "leaks":
            leaked = sum(file.leaked for file in report.files)
            return f"{report.name}: no errors; {human_size(leaked)} of its files are used by nothing.{use}"
        case _:
            return f"{report.name}: {_count(report.errors, 'error')}, {_count(report.leaks, 'leak')}.{use}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _repair(disk: Path, wanted: _Wanted, allow_paths: list[str], *, as_json: bool) -> int:
    from vdkit.vmdk.check import repair_disk

    if (wanted.target is not None) + wanted.in_place + wanted.dry_run != 1:
        raise UsageError(
            f"{disk}: say how to repair it",
            remedy="--to NEW for a repaired copy, --in-place to change it, --dry-run to see what is needed",
        )
    if wanted.undo is not None and not wanted.in_place:
        raise UsageError("--undo goes with --in-place: nothing else changes the disk")
    store, name = _at(disk)
    with job_observer(as_json=as_json) as observer:

        def tell(state: CheckProgress) -> None:
            if not as_json:
                observer.progress(f"repair {Path(state.place).name}", state.done, state.total)

        report = repair_disk(
            store,
            name,
            target=_beside(disk, wanted.target, "the repaired copy"),
            in_place=wanted.in_place,
            undo=_beside(disk, wanted.undo, "the undo file"),
            dry_run=wanted.dry_run,
            allow_paths=allow_paths,
            progress=tell,
            **wanted.options,
        )
    whole = _whole(store, report.target or name, report, allow_paths)
    if as_json:
        print_json({**report.as_json(), "exit_code": whole.exit_code})
    else:
        _print_repair(disk, report, whole)
    return whole.exit_code


def _whole(store: Store, name: str, report: RepairReport, allow_paths: list[str]) -> CheckReport:
    """A repair is of one link: what is wrong with its parents is still wrong, and must not look mended."""
    from vdkit.vmdk.check import CheckExit, check_disk
    from vdkit.vmdk.files import is_child

    if report.dry_run or report.after.exit_code == CheckExit.CORRUPT or not is_child(store, name):
        return report.after
    return check_disk(store, name, allow_paths=allow_paths)


def _beside(disk: Path, other: Path | None, what: str) -> str | None:
    """A name in the folder of the disk."""
    if other is None:
        return None
    bare = str(other) == other.name
    if not bare and not (other.parent.exists() and other.parent.samefile(disk.parent)):
        raise UsageError(f"{other}: {what} lies in the folder of the disk, {disk.parent.absolute()}")
    return other.name


def _print_repair(disk: Path, report: RepairReport, whole: CheckReport) -> None:
    verb = "would be" if report.dry_run else "was"
    if not report.is_changed:
        print_text(f"{disk}: there was nothing to mend in it.")
    for title, items in (
        (f"what {verb} done", report.done),
        ("concluded, not read", report.inferred),
        ("left alone without your consent", report.blocked),
    ):
        if items:
            print_text(f"{title}:")
            for item in items:
                print_text(f"  {item}")
    if report.lost:
        print_text(f"bytes of the disk whose content {'would be' if report.dry_run else 'is'} lost:")
        for start, length in report.lost:
            print_text(f"  {start} to {start + length}")
    if report.target is not None and report.is_changed:
        print_text(f"repaired copy: {disk.parent / report.target}")
    if report.undo is not None and report.is_changed:
        undo = disk.parent / report.undo
        print_text(f"what was there before: {undo}; vdkit check --undo-repair {undo} puts it back")
    if whole is not report.after and whole.errors:
        print_text("what a repair of this link cannot mend:")
        for finding in whole.findings:
            _print_finding(finding)
    print_text(f"after the repair: {_verdict(whole)}")


def _undo(path: Path, *, force: bool, as_json: bool) -> None:
    from vdkit.disklib.hosted import split_path
    from vdkit.vmdk.check import undo_repair

    store, name = split_path(path)
    undo_repair(store, name, force=force)
    if as_json:
        print_json({"undone": str(path)})
    else:
        print_text(f"{path}: the repair was taken back")
    print_note("the disk is now as it was before the repair, damage included")
