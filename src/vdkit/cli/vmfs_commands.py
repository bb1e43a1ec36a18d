"""Commands that look into the VMFS volumes of LUNs: vmfs ls, stat, map, cp."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdkit.cli.diskoptions import AllowOption
from vdkit.cli.options import JsonOption
from vdkit.cli.output import human_size, job_observer, print_json, print_table, print_text
from vdkit.errors import UsageError

if TYPE_CHECKING:
    from vdkit.vmfs import Descriptor, Run, Volume

LunsArgument = Annotated[
    str,
    typer.Argument(
        metavar="LUN[,LUN...]", help="Block devices or images that hold one volume; all of its LUNs."
    ),
]
PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Path inside the volume.")]


def add_to(app: typer.Typer) -> None:
    vmfs = typer.Typer(
        name="vmfs",
        help="Look into a VMFS-5 or VMFS-6 datastore through its LUNs. Nothing is ever written to them.",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    vmfs.command("ls")(ls)
    vmfs.command("stat")(stat)
    vmfs.command("map")(map_file)
    vmfs.command("cp")(cp)
    app.add_typer(vmfs)


def ls(
    luns: LunsArgument,
    path: PathArgument = "",
    recursive: Annotated[bool, typer.Option("-R", "--recursive", help="Folders in folders too.")] = False,
    every: Annotated[bool, typer.Option("-a", "--all", help="The volume's own files too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the files of a datastore.

    Example: vdkit vmfs ls /dev/mapper/mpatha,/dev/mapper/mpathb vm1
    """
    from vdkit.vmfs import FileType

    with _volume(luns) as volume:
        found = [
            (name, descriptor)
            for name, descriptor in _walk(volume, path.strip("/"), recursive=recursive)
            if every or descriptor.type is not FileType.SYSTEM
        ]
        if as_json:
            print_json({**_identity(volume), "files": [_facts(volume, n, d) for n, d in found]})
            return
        rows = [
            [
                _mode(descriptor),
                str(descriptor.length),
                human_size(_allocated(volume, descriptor)),
                _time(descriptor.mtime),
                name + ("/" if descriptor.type is FileType.DIRECTORY else ""),
            ]
            for name, descriptor in found
        ]
    print_table(["mode", "size", "allocated", "modified", "name"], rows, right=frozenset({1, 2}))


def stat(luns: LunsArgument, path: PathArgument = "", as_json: JsonOption = False) -> None:
    """Show a volume and one file of it: sizes, blocks, lock, where it is described.

    Example: vdkit vmfs stat lun.img vm1/vm1-flat.vmdk --json
    """
    with _volume(luns) as volume:
        descriptor = volume.resolve(path)
        facts = {
            **_identity(volume),
            "members": [
                {"lun": m.device.name, "offset": m.start, "names": list(m.names)}
                for m in volume.device.members
            ],
            "block_size": volume.super_block.block_size,
            "capacity": volume.device.capacity,
            **_facts(volume, path or "/", descriptor),
            "links": descriptor.links,
            "uid": descriptor.uid,
            "gid": descriptor.gid,
            "address": f"{descriptor.address:#010x}",
            "generation": descriptor.generation,
            "layout": descriptor.layout.name.lower(),
            "blocks": descriptor.blocks,
            "zeroed_blocks": descriptor.zeroed_blocks,
            "shared_blocks": descriptor.shared_blocks,
            "lock_mode": descriptor.lock_mode,
            "lock_version": descriptor.lock_version,
        }
    if as_json:
        print_json(facts)
        return
    for key, value in facts.items():
        if key != "members":
            print_text(f"{key.replace('_', ' '):<16} {value}")
    for member in facts["members"]:
        print_text(f"{'member':<16} {member['lun']} from byte {member['offset']}")


def map_file(luns: LunsArgument, path: PathArgument, as_json: JsonOption = False) -> None:
    """Show where the bytes of a file lie on the LUNs, and what of it is a hole or allocated but zero.

    Example: vdkit vmfs map lun.img vm1/vm1-flat.vmdk
    """
    with _volume(luns) as volume:
        descriptor = volume.resolve(path)
        blocks = volume.blocks(descriptor, path)
        places = [place for run in blocks.runs(0, descriptor.length) for place in _places(volume, run)]
    if as_json:
        print_json({"path": path, "size": descriptor.length, "runs": places})
        return
    rows = [
        [str(p["offset"]), str(p["length"]), p["state"], p.get("lun", "-"), str(p.get("lun_offset", "-"))]
        for p in places
    ]
    print_table(["offset", "length", "state", "lun", "lun offset"], rows, right=frozenset({0, 1, 4}))


def cp(
    luns: LunsArgument,
    path: PathArgument,
    target: Annotated[Path, typer.Argument(help="The new local file, or disk.", readable=False)],
    disk: Annotated[
        bool,
        typer.Option(
            "--disk", help="PATH is a descriptor: copy the disk that it describes, with all its links."
        ),
    ] = False,
    to: Annotated[
        str, typer.Option("-t", "--type", metavar="TYPE", help="Type of the new disk; raw for an image.")
    ] = "monolithicSparse",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET.")] = False,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a file out of a datastore, holes kept; with --disk a whole disk.

    A disk's parents may be in its own folder; name other folders of the datastore with --allow-path.

    Example: vdkit vmfs cp lun.img vm1/vm1-000001.vmdk vm1.vmdk --disk
    """
    from vdkit.disklib.local import save
    from vdkit.vmdk import open_disk
    from vdkit.vmfs import VmfsStore

    if not disk and to != "monolithicSparse":
        raise UsageError("--type goes with --disk: a file is copied as it is")
    with _volume(luns) as volume, job_observer(as_json=as_json) as observer:
        name = path.strip("/")
        source = (
            open_disk(VmfsStore(volume), name, allow_paths=allow_path or ())
            if disk
            else volume.file(volume.resolve(name, follow=True), name)
        )
        with source:
            result = save(
                source,
                target,
                to=to if disk else "raw",
                overwrite=overwrite,
                progress=lambda done, total: observer.progress(f"copy {name}", done, total),
            )
            size = source.capacity
    if as_json:
        print_json({"source": path, "target": str(target), "size": size, "written": result.written})
    else:
        print_text(f"{target}: {human_size(size)}, of which {human_size(result.written)} are data")


@contextmanager
def _volume(luns: str) -> Iterator[Volume]:
    from vdkit.disklib.lun import open_luns

    paths = [path for path in luns.split(",") if path]
    if not paths:
        raise UsageError(f"{luns!r} names no LUN")
    with open_luns(paths) as volume:
        yield volume


def _walk(volume: Volume, path: str, *, recursive: bool) -> Iterator[tuple[str, Descriptor]]:
    from vdkit.vmfs import FileType

    start = volume.resolve(path)
    if start.type is not FileType.DIRECTORY:
        yield path, start
        return
    for entry in volume.entries(start, path):
        name = f"{path}/{entry.name}" if path else entry.name
        found = volume.descriptor(entry.address, name, entry.generation)
        yield name, found
        if recursive and found.type is FileType.DIRECTORY:
            yield from _walk(volume, name, recursive=True)


def _identity(volume: Volume) -> dict[str, Any]:
    block = volume.super_block
    return {
        "label": volume.label,
        "uuid": volume.uuid,
        "vmfs": f"{block.version} ({block.major}.{block.minor})",
    }


def _facts(volume: Volume, name: str, descriptor: Descriptor) -> dict[str, Any]:
    return {
        "name": name,
        "type": descriptor.type.name.lower(),
        "size": descriptor.length,
        "allocated": _allocated(volume, descriptor),
        "mode": f"{descriptor.mode:04o}",
        "modified": _time(descriptor.mtime),
    }


def _allocated(volume: Volume, descriptor: Descriptor) -> int:
    # Large blocks are counted as the small ones that they are made of.
    return descriptor.blocks * min(descriptor.block_size, volume.super_block.block_size)


def _places(volume: Volume, run: Run) -> Iterator[dict[str, Any]]:
    shared = {"shared": True} if run.shared else {}
    if run.volume_offset is None:
        yield {"offset": run.offset, "length": run.length, "state": run.state.value}
        return
    offset = run.offset
    for lun, lun_offset, length in volume.device.places(run.volume_offset, run.length):
        yield {
            "offset": offset,
            "length": length,
            "state": run.state.value,
            "lun": lun,
            "lun_offset": lun_offset,
            **shared,
        }
        offset += length


def _mode(descriptor: Descriptor) -> str:
    import stat as bits

    from vdkit.vmfs import FileType

    kind = {FileType.DIRECTORY: bits.S_IFDIR, FileType.SYMLINK: bits.S_IFLNK}.get(
        descriptor.type, bits.S_IFREG
    )
    return bits.filemode(kind | descriptor.mode)


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
