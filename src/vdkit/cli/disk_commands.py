"""Commands that look at local disks: info, map, compare, measure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdkit.cli.diskoptions import (
    TYPES,
    AllowOption,
    DiskArgument,
    FormatOption,
    JournalOption,
    errors_exit_with,
    parse_size,
)
from vdkit.cli.options import JsonOption
from vdkit.cli.output import flush_output, human_size, job_observer, print_json, print_text
from vdkit.errors import NotSupported, UsageError, VixError

if TYPE_CHECKING:
    from vdkit.block.device import BlockDevice
    from vdkit.disklib.comparing import CompareResult
    from vdkit.disklib.diskmap import MapEntry
    from vdkit.disklib.picture import Picture

_SIZES = {"capacity", "allocated", "stored"}


def add_to(app: typer.Typer) -> None:
    app.command("info")(info)
    app.command("map")(map_)
    app.command("compare")(compare)
    app.command("measure")(measure)


def info(
    disk: DiskArgument,
    chain: Annotated[bool, typer.Option("--chain", help="Tell more of every link, leaf first.")] = False,
    allocation: Annotated[
        bool, typer.Option("--allocation", help="Count what is allocated; reads the whole map.")
    ] = False,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a disk is: type, capacity, geometry, identity, the files and parents it consists of.

    A disk that cannot be opened here (a raw device mapping, a vSAN object, an encrypted one) is described
    from its descriptor, and the notes say why.

    Example: vdkit info vm/vm.vmdk
    """
    from vdkit.disklib.local import describe

    facts = describe(disk, allow_paths=allow_path or [], allocation=allocation)
    failure = _why_not(disk, allow_path or []) if facts.get("notes") else None
    if chain and failure is None:
        facts["chain"] = _chain(disk, allow_path or [])
    if as_json:
        print_json(facts)
    else:
        _print_facts(facts)
    if failure is not None:
        raise failure


def _why_not(disk: Path, allow_paths: list[str]) -> VixError | None:
    """Why a disk that was described cannot be opened, if something is missing or wrong; that it is of a kind
    that is not opened here is an answer, not a failure.
    """
    from vdkit.disklib.opening import open_local

    try:
        open_local(disk, allow_paths=allow_paths).close()
    except NotSupported:
        return None
    except VixError as error:
        return error
    return None


def _print_facts(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if key == "chain":
            _print_chain(value)
        elif isinstance(value, list):
            print_text(f"{key}:")
            for item in value:
                print_text(f"  {item}")
        elif key in _SIZES and isinstance(value, int):
            print_text(f"{key}: {value} bytes ({human_size(value)})")
        else:
            print_text(f"{key}: {value}")


def _chain(disk: Path, allow_paths: list[str]) -> list[dict[str, Any]]:
    from vdkit.disklib.opening import open_local
    from vdkit.vmdk import Disk

    try:
        opened = open_local(disk, allow_paths=allow_paths)
    except NotSupported:
        return []
    with opened:
        if not isinstance(opened, Disk):
            return []
        return [
            {
                "name": link.name,
                "type": link.create_type,
                "cid": f"{link.cid:08x}",
                "parent_cid": None if link.parent_cid is None else f"{link.parent_cid:08x}",
                "parent": link.parent_hint,
                "files": list(link.files),
                "unclean": link.unclean,
            }
            for link in opened.info.links
        ]


def _print_chain(links: list[dict[str, Any]]) -> None:
    print_text("chain:")
    for depth, link in enumerate(links):
        print_text(f"  {depth}: {link['name']}")
        for key in ("type", "cid", "parent_cid", "parent", "files", "unclean"):
            value = link[key]
            if value not in (None, False, []):
                print_text(f"     {key}: {', '.join(value) if isinstance(value, list) else value}")


def map_(
    disk: DiskArgument,
    allow_path: AllowOption = None,
    ignore_journal: JournalOption = False,
    as_json: JsonOption = False,
    output: Annotated[
        str | None, typer.Option("--output", help="human or json, as qemu-img spells it.")
    ] = None,
    png: Annotated[
        Path | None,
        typer.Option(
            "--png",
            metavar="FILE",
            help="Draw a picture instead; a picture there is replaced.",
            readable=False,
        ),
    ] = None,
    width: Annotated[int, typer.Option("--width", help="Width of the picture in pixels.")] = 1024,
) -> None:
    """Show which ranges of a disk hold data and which read as zeroes, and which link of a chain holds them.

    --json prints qemu-img's list of objects (start, length, depth, zero, data, present, offset).

    Example: vdkit map vm/vm-000001.vmdk --png map.png
    """
    from vdkit.disklib.diskmap import map_entries
    from vdkit.disklib.opening import open_local

    match output:
        case None:
            pass
        case "json" | "human":
            as_json = output == "json"
        case _:
            raise typer.BadParameter(f"{output!r} is neither human nor json", param_hint="--output")
    with open_local(disk, allow_paths=allow_path or [], ignore_journal=ignore_journal) as opened:
        if png is not None:
            _draw(opened, disk.name, png, width, as_json=as_json)
        elif as_json:
            _print_json_map(map_entries(opened))
        else:
            _print_map(opened)


def _print_json_map(entries: Iterator[MapEntry]) -> None:
    """As qemu-img lays it out: an object per line, written as they come."""
    lines = (json.dumps(entry) for entry in entries)
    last = next(lines, None)
    if last is None:
        print_text("[]")
        return
    before = "["
    for line in lines:
        print_text(f"{before}{last},")
        before, last = "", line
    print_text(f"{before}{last}]")
    flush_output()


def _print_map(disk: BlockDevice) -> None:
    from vdkit.disklib.diskmap import map_layers
    from vdkit.vmdk import Disk

    links = len(disk.info.links) if isinstance(disk, Disk) else 1
    wide = max(len("length"), len(str(disk.capacity)))
    heads = ["offset".rjust(wide), "length".rjust(wide), "kind"]
    print_text("  ".join([*heads, "depth"] if links > 1 else heads))
    for (start, length, kind), depth, _ in map_layers(disk):
        held = "data" if kind.value == "data" else "zero"
        line = f"{start:>{wide}}  {length:>{wide}}  {held}"
        print_text(f"{line}  {depth}" if links > 1 else line)


def _draw(disk: BlockDevice, name: str, target: Path, width: int, *, as_json: bool) -> None:
    from vdkit.disklib.diskmap import map_layers
    from vdkit.disklib.picture import draw_map, save_png
    from vdkit.vmdk import Disk

    links = len(disk.info.links) if isinstance(disk, Disk) else 1
    picture = draw_map(map_layers(disk), disk.capacity, links=links, title=name, width=width)
    save_png(picture, target)
    if as_json:
        print_json(_picture_facts(picture, target))
    else:
        size = f"{picture.width} x {picture.height} pixels"
        print_text(f"{target}: {size}, one cell is {human_size(picture.cell)}")


def _picture_facts(picture: Picture, target: Path) -> dict[str, Any]:
    return {
        "picture": str(target),
        "width": picture.width,
        "height": picture.height,
        "cell": picture.cell,
        "columns": picture.columns,
        "data": list(picture.data),
        "zero": picture.zero,
        "absent": picture.absent,
    }


def compare(
    first: DiskArgument,
    second: DiskArgument,
    strict: Annotated[
        bool, typer.Option("-s", "--strict", help="Sizes and allocation must be equal too.")
    ] = False,
    first_format: Annotated[
        str | None, typer.Option("-f", metavar="FORMAT", help="raw or vmdk, of the first disk.")
    ] = None,
    second_format: Annotated[
        str | None, typer.Option("-F", metavar="FORMAT", help="raw or vmdk, of the second disk.")
    ] = None,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare what two disks hold, all links of each as one.

    The exit codes are qemu-img's: 0 the same, 1 different, 2 an error.

    Example: vdkit compare vm/vm-000002.vmdk restored.vmdk
    """
    from vdkit.disklib.comparing import FAILED, compare_disks

    with errors_exit_with(lambda _: FAILED), job_observer(as_json=as_json) as observer:
        result = compare_disks(
            first,
            second,
            first_format=first_format,
            second_format=second_format,
            strict=strict,
            allow_paths=allow_path or [],
            progress=lambda done, total: observer.progress(f"compare {first.name}", done, total),
        )
    if as_json:
        print_json(
            {
                "message_type": "summary",
                "same": result.same,
                "first_capacity": result.first_capacity,
                "second_capacity": result.second_capacity,
                "first_difference": result.first_difference,
                "allocation_difference": result.allocation_difference,
                "strict": strict,
            }
        )
    else:
        print_text(_comparison(result))
    if not result.same:
        raise typer.Exit(result.exit_code)


def _comparison(result: CompareResult) -> str:
    if not result.same and result.strict and not result.same_size:
        return f"The sizes differ: {result.first_capacity} and {result.second_capacity} bytes."
    if result.allocation_difference is not None:
        return f"The allocation differs at offset {result.allocation_difference}."
    if result.first_difference is not None:
        return f"The content differs at offset {result.first_difference}."
    if not result.same_size:
        return "The content is identical; the longer disk has only zeroes beyond the other's end."
    return "The disks are identical."


def measure(
    disk: Annotated[Path | None, typer.Argument(help="A VMDK, or a raw image.", readable=False)] = None,
    to: Annotated[str, typer.Option("-O", "--to", metavar="TYPE", help=f"{TYPES}.")] = "monolithicSparse",
    size: Annotated[str | None, typer.Option("--size", help="An empty disk of this size instead.")] = None,
    from_: FormatOption = None,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Tell how much room a copy of a disk would need as another type, at most.

    "fully allocated" is what it would need if every byte were data.

    Example: vdkit measure vm/vm.vmdk -O streamOptimized
    """
    from vdkit.disklib.measuring import measure_disk, measure_size

    if (disk is None) == (size is None):
        raise UsageError("say which disk to measure, or --size")
    if disk is not None:
        found = measure_disk(disk, to=to, source_format=from_, allow_paths=allow_path or [])
    else:
        found = measure_size(parse_size(size or "", "--size"), to=to)
    if as_json:
        print_json({"required": found.required, "fully-allocated": found.fully_allocated})
    else:
        print_text(f"required size: {found.required} bytes ({human_size(found.required)})")
        full = found.fully_allocated
        print_text(f"fully allocated size: {full} bytes ({human_size(full)})")
