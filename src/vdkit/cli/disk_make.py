"""Commands that make local disks: create, convert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vdkit.cli.diskoptions import (
    TYPES,
    AdapterOption,
    AllowOption,
    FormatOption,
    HardwareOption,
    JournalOption,
    SplitOption,
    parse_size,
    size_or_none,
)
from vdkit.cli.options import JsonOption
from vdkit.cli.output import human_size, job_observer, print_json, print_note, print_text
from vdkit.errors import UsageError


def add_to(app: typer.Typer) -> None:
    app.command("create")(create)
    app.command("convert")(convert)


def create(
    disk: Annotated[Path, typer.Argument(help="The disk to make; it must not exist.", readable=False)],
    size: Annotated[
        str | None, typer.Argument(help="Its capacity, for example 10G; that of the parent for a child.")
    ] = None,
    disk_type: Annotated[
        str | None,
        typer.Option(
            "-t", "--type", metavar="TYPE", help=f"{TYPES}; for a child, vmfsSparse or a sparse hosted type."
        ),
    ] = None,
    parent: Annotated[
        Path | None,
        typer.Option("--parent", help="Make a child of this disk, as a snapshot does.", readable=False),
    ] = None,
    adapter: AdapterOption = "lsilogic",
    hw_version: HardwareOption = None,
    split: SplitOption = None,
    grain: Annotated[str | None, typer.Option("--grain", metavar="SIZE", help="Size of a grain.")] = None,
    sector_size: Annotated[int, typer.Option("--sector-size", help="4096 for a 4Kn disk.")] = 512,
    preallocate: Annotated[
        bool, typer.Option("--preallocate", help="Reserve all the space of a flat disk.")
    ] = False,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an empty disk, or with --parent an empty child of one.

    Example: vdkit create vm/vm.vmdk 40G -t twoGbMaxExtentSparse
    """
    from vdkit.disklib.making import make_child, make_disk

    if parent is not None:
        if size is not None or preallocate or hw_version is not None or sector_size != 512:
            raise UsageError(f"{disk}: a child takes its size and its hardware from its parent")
        made = make_child(
            parent,
            disk,
            kind=disk_type,
            split=size_or_none(split, "--split"),
            grain=size_or_none(grain, "--grain"),
            allow_paths=allow_path or [],
        )
    elif size is None:
        raise UsageError(f"{disk}: its size is missing", remedy="for example: vdkit create disk.vmdk 10G")
    else:
        made = make_disk(
            disk,
            parse_size(size, "SIZE"),
            kind=disk_type or "monolithicSparse",
            adapter=adapter,
            hardware_version=hw_version,
            split=size_or_none(split, "--split"),
            grain=size_or_none(grain, "--grain"),
            sector_size=sector_size,
            preallocate=preallocate,
        )
    if as_json:
        print_json({"path": str(disk), "type": made.kind, "capacity": made.capacity})
    else:
        print_text(f"{disk}: {made.kind}, {made.capacity} bytes ({human_size(made.capacity)})")


def convert(
    source: Annotated[
        Path, typer.Argument(help="A VMDK or a raw image; - is standard input, a stream.", readable=False)
    ],
    target: Annotated[
        Path,
        typer.Argument(help="The disk to make; - is standard output, for streamOptimized.", readable=False),
    ],
    to: Annotated[str, typer.Option("-O", "--to", metavar="TYPE", help=f"{TYPES}.")] = "monolithicSparse",
    from_: FormatOption = None,
    fast: Annotated[bool, typer.Option("--fast", help="streamOptimized: quicker, somewhat larger.")] = False,
    adapter: AdapterOption = "lsilogic",
    hw_version: HardwareOption = None,
    split: SplitOption = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a disk of that name once the new one is complete.")
    ] = False,
    allow_path: AllowOption = None,
    ignore_journal: JournalOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a new disk of another type with the same content; the whole chain is flattened.

    The new disk has its name only once it is complete.

    Example: vdkit convert vm/vm-000002.vmdk flat.raw -O raw
    """
    from vdkit.disklib.local import convert as convert_disk

    piped = str(target) == "-"
    if piped and as_json:
        raise UsageError("--json would be mixed with the disk on standard output", remedy="leave it out")
    if piped and sys.stdout.isatty():
        raise UsageError("a disk is not written to a terminal", remedy="send standard output somewhere else")
    with job_observer(as_json=as_json) as observer:
        result = convert_disk(
            source,
            target,
            to=to,
            source_format=from_,
            adapter=adapter,
            hardware_version=hw_version,
            split=size_or_none(split, "--split"),
            fast=fast,
            overwrite=overwrite,
            allow_paths=allow_path or [],
            ignore_journal=ignore_journal,
            progress=lambda done, total: observer.progress(f"convert {source.name}", done, total),
        )
    line = f"{target}: {to}, {human_size(result.read)} read in {result.seconds:.1f} s"
    if as_json:
        print_json(
            {
                "message_type": "summary",
                "target": str(target),
                "type": to,
                "bytes_read": result.read,
                "bytes_written": result.written,
                "seconds": round(result.seconds, 3),
            }
        )
    elif piped:
        print_note(line)
    else:
        print_text(line)
