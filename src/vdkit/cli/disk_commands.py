"""Commands on local disks: info, map, convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vdkit.cli.options import JsonOption
from vdkit.cli.output import human_size, job_observer, print_json, print_table, print_text

AllowOption = Annotated[
    list[str] | None,
    typer.Option("--allow-path", help="A further folder that descriptors may point into (repeatable)."),
]


def add_to(app: typer.Typer) -> None:
    app.command("info")(info)
    app.command("map")(map_)
    app.command("convert")(convert)


def info(
    disk: Annotated[Path, typer.Argument(help="A VMDK, or a raw image.")],
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a disk is: type, capacity, geometry, identity, the files and parents it consists of.

    Example: vdkit info vm/vm.vmdk
    """
    from vdkit.disklib.local import describe

    facts = describe(disk, allow_paths=allow_path or [])
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if isinstance(value, list):
            print_text(f"{key}:")
            for item in value:
                print_text(f"  {item}")
        elif key in {"capacity", "allocated"} and isinstance(value, int):
            print_text(f"{key}: {value} bytes ({human_size(value)})")
        else:
            print_text(f"{key}: {value}")


def map_(
    disk: Annotated[Path, typer.Argument(help="A VMDK, or a raw image.")],
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
    output: Annotated[
        str | None, typer.Option("--output", help="human or json, as qemu-img spells it.")
    ] = None,
) -> None:
    """Show which ranges of a disk hold data and which read as zeroes.

    --json prints qemu-img's list of objects (start, length, depth, zero, data, present).

    Example: vdkit map --json vm/vm-000001.vmdk
    """
    from vdkit.disklib.local import allocation_map

    match output:
        case None:
            pass
        case "json":
            as_json = True
        case "human":
            as_json = False
        case _:
            raise typer.BadParameter(f"{output!r} is neither human nor json", param_hint="--output")
    rows = allocation_map(disk, allow_paths=allow_path or [])
    if as_json:
        import json

        print_text(json.dumps(list(rows)))
        return
    print_table(
        ["offset", "length", "kind"],
        [[str(row["start"]), str(row["length"]), "zero" if row["zero"] else "data"] for row in rows],
        right=frozenset({0, 1}),
    )


def convert(
    source: Annotated[Path, typer.Argument(help="A VMDK or a raw image.")],
    target: Annotated[Path, typer.Argument(help="The disk to make; it must not exist.")],
    to: Annotated[
        str,
        typer.Option(
            "-O",
            "--to",
            metavar="TYPE",
            help="raw, monolithicSparse, monolithicFlat, streamOptimized, vmfs or vmfsThin.",
        ),
    ] = "monolithicSparse",
    from_: Annotated[
        str | None,
        typer.Option("-f", "--from", metavar="FORMAT", help="raw or vmdk; found out if not given."),
    ] = None,
    fast: Annotated[bool, typer.Option("--fast", help="streamOptimized: quicker, somewhat larger.")] = False,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new disk of another type with the same content; the whole chain is flattened.

    Example: vdkit convert vm/vm-000002.vmdk flat.raw -O raw
    """
    from vdkit.disklib.local import convert as convert_disk

    with job_observer(as_json=as_json) as observer:
        result = convert_disk(
            source,
            target,
            to=to,
            source_format=from_,
            fast=fast,
            allow_paths=allow_path or [],
            progress=lambda done, total: observer.progress(f"convert {source.name}", done, total),
        )
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
    else:
        print_text(f"{target}: {to}, {human_size(result.read)} read in {result.seconds:.1f} s")
