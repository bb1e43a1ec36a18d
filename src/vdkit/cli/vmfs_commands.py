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
from vdkit.cli.output import (
    human_size,
    job_observer,
    print_json,
    print_json_items,
    print_table,
    print_text,
)
from vdkit.errors import CorruptDisk, UsageError

if TYPE_CHECKING:
    from vdkit.block.device import BlockDevice
    from vdkit.jobs.observer import Observer
    from vdkit.vmfs import Checked, Descriptor, Run, Volume

LunsArgument = Annotated[
    str,
    typer.Argument(
        metavar="LUN[,LUN...]", help="Block devices or images that hold one volume; all of its LUNs."
    ),
]
#: Bytes from which on a file of a folder has its own progress.
TOLD = 64 << 20
PathArgument = Annotated[str, typer.Argument(metavar="PATH", help="Path inside the volume.")]


def add_to(app: typer.Typer) -> None:
    vmfs = typer.Typer(
        name="vmfs",
        help="Look into a VMFS-5 or VMFS-6 datastore through its LUNs. Nothing is ever written to them.\n\n"
        "Example: vdkit vmfs ls /dev/mapper/mpatha",
        no_args_is_help=True,
        rich_markup_mode=None,
    )
    vmfs.command("ls")(ls)
    vmfs.command("stat")(stat)
    vmfs.command("map")(map_file)
    vmfs.command("cp")(cp)
    app.add_typer(vmfs, name="vmfs")


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


def stat(
    luns: LunsArgument,
    path: PathArgument = "",
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Walk the whole map: overlaps, counts, what cannot be read. Exit code 5 for any."
        ),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Show a volume and one file of it: sizes, blocks, lock, where it is described.

    Example: vdkit vmfs stat lun.img vm1/vm1-flat.vmdk --check
    """
    from vdkit.vmfs import check_file

    with _volume(luns) as volume:
        descriptor = volume.resolve(path)
        checked = check_file(volume, descriptor, path) if check else None
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
        if checked is not None:
            facts["check"] = _findings(checked)
        name = f"{volume.name} {path or '/'}"
    if as_json:
        print_json(facts)
    else:
        _print_facts(facts)
    if checked is not None and checked.problems:
        raise CorruptDisk(f"{name}: {'; '.join(checked.problems)}", remedy="read this file through the host")


def _findings(checked: Checked) -> dict[str, Any]:
    return {
        "runs": checked.runs,
        "bytes": checked.sizes,
        "shared": checked.shared,
        "problems": list(checked.problems),
    }


def _print_facts(facts: dict[str, Any]) -> None:
    for key, value in facts.items():
        if key not in ("members", "check"):
            print_text(f"{key.replace('_', ' '):<16} {value}")
    for member in facts["members"]:
        print_text(f"{'member':<16} {member['lun']} from byte {member['offset']}")
    if "check" in facts:
        found = facts["check"]
        told = ", ".join(f"{human_size(size)} {state}" for state, size in found["bytes"].items() if size)
        print_text(
            f"{'check':<16} {found['runs']} runs: {told or 'no blocks'}; {len(found['problems'])} problems"
        )


def map_file(luns: LunsArgument, path: PathArgument, as_json: JsonOption = False) -> None:
    """Show where the bytes of a file lie on the LUNs, and what of it is a hole or allocated but zero.

    Example: vdkit vmfs map lun.img vm1/vm1-flat.vmdk
    """
    with _volume(luns) as volume:
        descriptor = volume.resolve(path)
        # A file may have millions of runs: none of them is kept.
        runs = volume.blocks(descriptor, path).runs(0, descriptor.length)
        places = (place for run in runs for place in _places(volume, run))
        if as_json:
            print_json_items({"path": path, "size": descriptor.length}, "runs", places)
            return
        width = max(len("offset"), len(str(descriptor.length)))
        print_text(f"{'offset':>{width}}  {'length':>{width}}  {'state':<7}  {'lun offset':>16}  lun")
        for place in places:
            span = f"{place['offset']:>{width}}  {place['length']:>{width}}"
            where = f"{place.get('lun_offset', '-'):>16}  {place.get('lun', '-')}"
            print_text(f"{span}  {place['state']:<7}  {where}")


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
    recursive: Annotated[
        bool, typer.Option("-r", "--recursive", help="PATH is a folder: copy all that is in it.")
    ] = False,
    to: Annotated[
        str, typer.Option("-t", "--type", metavar="TYPE", help="Type of the new disk; raw for an image.")
    ] = "monolithicSparse",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace TARGET.")] = False,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy a file out of a datastore, holes kept; with --disk a whole disk, with -r a folder.

    A disk's parents may be in its own folder; name other folders of the datastore with --allow-path.

    Example: vdkit vmfs cp lun.img vm1/vm1-000001.vmdk vm1.vmdk --disk
    """
    from vdkit.vmdk import open_disk
    from vdkit.vmfs import VmfsStore

    if not disk and to != "monolithicSparse":
        raise UsageError("--type goes with --disk: a file is copied as it is")
    if disk and recursive:
        raise UsageError("--disk copies one disk, --recursive a folder: give one of them")
    with _volume(luns) as volume, job_observer(as_json=as_json) as observer:
        name = path.strip("/")
        if recursive:
            size, written = _copy_folder(volume, name, target, overwrite=overwrite, observer=observer)
        else:
            source = (
                open_disk(VmfsStore(volume), name, allow_paths=allow_path or ())
                if disk
                else volume.file(volume.resolve(name, follow=True), name)
            )
            size, written = _save(source, name, target, to if disk else "raw", overwrite, observer)
    if as_json:
        print_json({"source": path, "target": str(target), "size": size, "written": written})
    else:
        print_text(f"{target}: {human_size(size)}, of which {human_size(written)} are data")


def _save(
    source: BlockDevice,
    name: str,
    target: Path,
    to: str,
    overwrite: bool,
    observer: Observer,
    least: int = 0,
) -> tuple[int, int]:
    """Copies and closes ``source``; its size, and what of it was written."""
    from vdkit.disklib.local import save

    def tell(done: int, total: int) -> None:
        if total >= least:
            observer.progress(f"copy {name}", done, total)

    with source:
        result = save(
            source,
            target,
            to=to,
            overwrite=overwrite,
            progress=tell,
        )
        return source.capacity, result.written


def _copy_folder(
    volume: Volume, folder: str, target: Path, *, overwrite: bool, observer: Observer
) -> tuple[int, int]:
    """What is in a folder, into a new one. Links and raw device mappings are told and left out."""
    from vdkit.errors import AlreadyExists, from_os_error
    from vdkit.vmfs import FileType

    if volume.resolve(folder).type is not FileType.DIRECTORY:
        raise UsageError(f"{volume.name} {folder}: --recursive wants a folder")
    size = written = 0
    made = target
    try:
        target.mkdir(exist_ok=overwrite)
        for path, found in volume.walk(folder):
            made = target / path.removeprefix(f"{folder}/" if folder else "")
            match found.type:
                case FileType.DIRECTORY:
                    made.mkdir(exist_ok=overwrite)
                case FileType.FILE:
                    copied = _save(volume.file(found, path), path, made, "raw", overwrite, observer, TOLD)
                    size, written = size + copied[0], written + copied[1]
                case FileType.SYMLINK | FileType.RDM:
                    observer.warning(f"{path}: left out, as it is a {found.type.name.lower()}")
                case FileType.SYSTEM:
                    continue  # the volume's own
    except FileExistsError as error:
        raise AlreadyExists(
            f"{made}: exists already", remedy="name another folder, or --overwrite"
        ) from error
    except OSError as error:
        raise from_os_error(error, f"{made}: making a folder") from error
    return size, written


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
    yield from volume.walk(path, recursive=recursive)


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
