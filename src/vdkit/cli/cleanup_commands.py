"""The command that tidies up after runs that crashed: cleanup."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdkit.cli.options import HostFlags, JsonOption, host_options
from vdkit.cli.output import job_observer, print_json, print_table, print_text
from vdkit.errors import ExitCode, RepositoryMissing, UsageError

if TYPE_CHECKING:
    from vdkit.backup import Repository
    from vdkit.jobs.cleanup import CleanupResult, Leftover

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add_to(app: typer.Typer) -> None:
    app.command("cleanup")(cleanup)


@host_options
def cleanup(
    machines: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VM]...", help="Name, inventory path, moref or UUID; all machines if none."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Clean; without it, only list.")] = False,
    repositories: Annotated[
        list[Path] | None,
        typer.Option("--repository", metavar="REPO", help="Its lock tells what is in use. May be repeated."),
    ] = None,
    older_than: Annotated[
        str,
        typer.Option("--older-than", metavar="TIME", help="Age of snapshots of other runs: 90m, 24h, 7d."),
    ] = "24h",
    runs: Annotated[
        list[str] | None,
        typer.Option("--run", help="Only what this run made, whatever its age. May be repeated."),
    ] = None,
    identities: Annotated[
        list[str] | None,
        typer.Option("--identity", help="End disabled relocation of this name too. May be repeated."),
    ] = None,
    *,
    flags: HostFlags,
    as_json: JsonOption = False,
) -> None:
    """Find what runs that crashed left on a host, and remove it with --yes.

    vdkit's own snapshots, disks that wait for consolidation, machines kept from being relocated; never what
    others made. Ends with 0 if nothing is left to clean, else with 1.

    Example: vdkit cleanup web01 --repository /backup/vms --yes
    """
    from vdkit.jobs.cleanup import Choice, clean_up
    from vdkit.vsphere.access import check_identity

    for identity in identities or ():
        check_identity(identity)
    choice = Choice(
        repositories=tuple(_repository(path) for path in repositories or ()),
        older_than=_seconds(older_than),
        runs=frozenset(runs or ()),
        identities=tuple(identities or ()),
    )
    with (
        flags.login() as session,
        job_observer(as_json=as_json) as observer,
    ):
        result = clean_up(session, observer, machines=machines or (), choice=choice, remove=yes)
    _report(result, as_json=as_json, removed=yes)
    if result.remaining:
        raise typer.Exit(ExitCode.FAILED)


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d{1,9})([smhd])", text)
    if match is None:
        raise UsageError(f"--older-than {text[:40]!r}: a number and s, m, h or d are needed, such as 24h")
    return float(int(match[1]) * _UNITS[match[2]])


def _repository(path: Path) -> Repository:
    from vdkit.backup import Repository
    from vdkit.block.local import FolderStore

    if not path.is_dir():
        raise RepositoryMissing(f"{path}: there is no repository here", remedy="check the path")
    return Repository.open(FolderStore(path))


def _report(result: CleanupResult, *, as_json: bool, removed: bool) -> None:
    if as_json:
        print_json(
            {
                "message_type": "summary",
                "cleaned": result.cleaned,
                "remaining": result.remaining,
                "kept": result.kept,
                "leftovers": [_item(item) for item in result.items],
            }
        )
        return
    if result.items:
        print_table(
            ["machine", "leftover", "age", "state", "why"],
            [
                [item.machine, item.what, _age(item.age), item.state.value, item.reason]
                for item in result.items
            ],
            right=frozenset({2}),
        )
    hint = "" if removed or not result.remaining else "; --yes cleans"
    print_text(f"{result.cleaned} cleaned, {result.remaining} remain, {result.kept} kept{hint}")


def _age(seconds: float | None) -> str:
    if seconds is None:
        return ""
    name = "d" if seconds >= 2 * _UNITS["d"] else "h" if seconds >= 2 * _UNITS["h"] else "m"
    return f"{max(0, int(seconds // _UNITS[name]))} {name}"


def _item(item: Leftover) -> dict[str, Any]:
    return {
        "kind": item.kind.value,
        "machine": item.machine,
        "moref": item.moref,
        "what": item.what,
        "run": item.run,
        "age": item.age,
        "state": item.state.value,
        "reason": item.reason,
    }
