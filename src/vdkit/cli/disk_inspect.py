"""The command that takes the files of a disk apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vdkit.cli.diskoptions import AllowOption, parse_size
from vdkit.cli.options import JsonOption
from vdkit.cli.output import human_size, print_json, print_table, print_text
from vdkit.errors import UsageError

if TYPE_CHECKING:
    from vdkit.vmdk.inspect import Inspection, Location, Section, TableDump


def add_to(app: typer.Typer) -> None:
    app.command("inspect")(inspect)


def inspect(
    file: Annotated[
        Path, typer.Argument(help="A descriptor, or an extent file; it may be damaged.", readable=False)
    ],
    tables: Annotated[
        bool, typer.Option("--tables", help="Read the grain tables and the markers of a stream too.")
    ] = False,
    offset: Annotated[
        str | None, typer.Option("--offset", metavar="BYTES", help="Tell where this byte of the disk lies.")
    ] = None,
    grain: Annotated[
        int | None, typer.Option("--grain", metavar="N", help="Tell where grain N of this file lies.", min=0)
    ] = None,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show every header field, descriptor line and table of a file, and what is wrong with them.

    With --offset or --grain: which link and which file hold that place of the disk, where in the file, and
    which table entries lead there; for recovery by hand.

    Example: vdkit inspect vm/vm-000001.vmdk --offset 5G
    """
    from vdkit.disklib.hosted import split_path
    from vdkit.vmdk.inspect import grain_bytes, inspect_file, locate

    if offset is not None and grain is not None:
        raise UsageError("say --offset or --grain, not both")
    store, name = split_path(file)
    allowed = allow_path or []
    if offset is None and grain is None:
        found = inspect_file(store, name, tables=tables, allow_paths=allowed)
        if as_json:
            print_json({**asdict(found), "sound": found.sound})
        else:
            _print_inspection(found)
        return
    place = parse_size(offset or "0", "--offset") if grain is None else grain * grain_bytes(store, name)
    locations = locate(store, name, place, allow_paths=allowed)
    if as_json:
        print_json({"offset": place, "locations": [asdict(location) for location in locations]})
    else:
        _print_locations(place, locations)


def _print_inspection(found: Inspection) -> None:
    print_text(f"{found.name}: {found.form}, {found.size} bytes ({human_size(found.size)})")
    _print_problems(found.problems)
    for section in found.sections:
        _print_section(section)
    if found.descriptor is not None:
        dump = found.descriptor
        print_text(f"\ndescriptor at byte {dump.offset}, {dump.room} bytes, {dump.encoding}")
        for line in dump.lines:
            wrong = f"    <-- {line.problem}" if line.problem else ""
            print_text(f"{line.number:>5}  {line.text}{wrong}")
        _print_problems(dump.problems)
    if found.extents:
        print_text("\nextent files")
        rows = [
            [e.name, e.type, str(e.sectors), "-" if e.size is None else str(e.size), e.problem]
            for e in found.extents
        ]
        print_table(["name", "type", "sectors", "size", ""], rows, right=frozenset({2, 3}))
    for table in found.tables:
        _print_tables(table)
    if found.differing:
        print_text(f"\nthe two copies differ in {found.differing} entries")
        rows = [
            [str(d.table), "-" if d.entry is None else str(d.entry), f"{d.primary:#x}", f"{d.redundant:#x}"]
            for d in found.differences
        ]
        print_table(["table", "entry", "primary", "redundant"], rows, right=frozenset({0, 1, 2, 3}))
    if found.stream is not None:
        stream = found.stream
        packed = human_size(stream.packed)
        print_text(f"\nmarkers: {stream.grains} grains, {packed} packed; of each run the first and the last")
        rows = [[str(m.sector), m.kind, str(m.value), str(m.size), m.problem] for m in stream.markers]
        print_table(["sector", "kind", "value", "size", ""], rows, right=frozenset({0, 2, 3}))
        _print_problems(stream.problems)


def _print_section(section: Section) -> None:
    print_text(f"\n{section.name} at byte {section.offset}")
    rows = []
    for field in section.fields:
        problem = f"<-- {field.problem}" if field.problem else ""
        rows.append([str(field.offset), field.name, str(field.value), f"{field.note}  {problem}".strip()])
    print_table(["at", "field", "value", ""], rows, right=frozenset({0, 2}))
    _print_problems(section.problems)


def _print_tables(table: TableDump) -> None:
    print_text(f"\n{table.name} tables: directory at byte {table.directory}")
    print_text(f"  {table.tables} tables: {table.present} present, {table.absent} absent")
    if table.seen:
        print_text(
            f"  in {table.seen} of them {table.grains_data} grains with data, {table.grains_zero} zero, "
            f"{table.grains_absent} absent"
        )
    if table.lowest is not None:
        print_text(f"  grains from sector {table.lowest} to {table.highest}")
    _print_problems(table.problems)


def _print_problems(problems: Sequence[str]) -> None:
    for problem in problems:
        print_text(f"  <-- {problem}")


def _print_locations(place: int, locations: Sequence[Location]) -> None:
    print_text(f"byte {place} of the disk")
    for found in locations:
        where = "" if found.file_offset is None else f" at byte {found.file_offset} of {found.file}"
        print_text(f"  link {found.depth}, {found.link}: {found.kind}{where}")
        if found.grain is not None:
            print_text(f"    grain {found.grain}: entry {found.entry} of table {found.table}")
        if found.value is not None and found.entry_offset is not None:
            print_text(f"    the entry at byte {found.entry_offset} of the file says {found.value:#x}")
        elif found.value is not None:
            print_text("    there is no such table")
        if found.redundant is not None:
            print_text(f"    the redundant copy says {found.redundant:#x}")
        if found.packed is not None:
            print_text(f"    compressed to {found.packed} bytes behind its marker")
        if found.problem:
            print_text(f"    <-- {found.problem}")
