"""Commands that change local disks as a whole: resize, shrink, defragment, rename, delete, attach, meta."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vdkit.cli.diskoptions import AllowOption, VmdkArgument, check_no_children, parse_size
from vdkit.cli.options import JsonOption
from vdkit.cli.output import human_size, job_observer, print_json, print_note, print_text
from vdkit.errors import NotSupported, UsageError

if TYPE_CHECKING:
    from vdkit.block.local import FolderStore
    from vdkit.vmdk.admin import AdminResult


def add_to(app: typer.Typer) -> None:
    app.command("resize", context_settings={"ignore_unknown_options": True})(resize)
    app.command("shrink")(shrink)
    app.command("defragment")(defragment)
    app.command("rename")(rename)
    app.command("delete")(delete)
    app.command("attach")(attach)
    app.command("meta")(meta)


def _at(disk: Path) -> tuple[FolderStore, str]:
    from vdkit.disklib.hosted import split_path

    return split_path(disk)


def _report(facts: dict[str, Any], line: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"message_type": "summary", **facts})
    else:
        print_text(line)


def resize(
    disk: VmdkArgument,
    size: Annotated[str, typer.Argument(help="The new capacity, for example 80G, or +10G for so much more.")],
    keep_geometry: Annotated[
        bool, typer.Option("--keep-geometry", help="Leave cylinders, heads and sectors as they are.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Even if other disks have it as their parent; they will not open.")
    ] = False,
    shrink_: Annotated[bool, typer.Option("--shrink", hidden=True)] = False,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a disk larger; what is new reads as zeroes. A capacity never shrinks.

    Example: vdkit resize vm/vm.vmdk +10G
    """
    from vdkit.vmdk import describe_only
    from vdkit.vmdk.admin import grow_disk

    store, name = _at(disk)
    old = describe_only(store, name).capacity
    wanted = size.strip()
    if wanted.startswith("-") or shrink_:
        raise _never_smaller(disk, old)
    new = old + parse_size(wanted[1:], "SIZE") if wanted.startswith("+") else parse_size(wanted, "SIZE")
    if new < old:
        raise _never_smaller(disk, old)
    with job_observer(as_json=as_json) as observer:
        grow_disk(
            store,
            name,
            new,
            update_geometry=not keep_geometry,
            force=force,
            allow_paths=allow_path or [],
            progress=lambda done, total: observer.progress(f"resize {disk.name}", done, total),
        )
    facts = {"path": str(disk), "before": old, "capacity": new}
    _report(facts, f"{disk}: {new} bytes ({human_size(new)}), {human_size(new - old)} more", as_json=as_json)


def _never_smaller(disk: Path, capacity: int) -> NotSupported:
    return NotSupported(
        f"{disk}: the capacity of a disk never shrinks; it is {capacity} bytes",
        remedy="give unused space back with vdkit shrink, or copy the file systems to a smaller disk",
    )


def shrink(disk: VmdkArgument, allow_path: AllowOption = None, as_json: JsonOption = False) -> None:
    """Give back the space of a sparse disk that holds only zeroes; the capacity stays.

    Needs room for a second copy of the largest extent file while it works.

    Example: vdkit shrink vm/vm.vmdk
    """
    from vdkit.vmdk.admin import shrink_disk

    _compact(shrink_disk, "shrink", disk, allow_path, as_json=as_json)


def defragment(disk: VmdkArgument, allow_path: AllowOption = None, as_json: JsonOption = False) -> None:
    """Put the grains of a sparse disk in ascending order, without gaps.

    Needs room for a second copy of the largest extent file while it works.

    Example: vdkit defragment vm/vm.vmdk
    """
    from vdkit.vmdk.admin import defragment_disk

    _compact(defragment_disk, "defragment", disk, allow_path, as_json=as_json)


def _compact(
    work: Callable[..., AdminResult], verb: str, disk: Path, allow_path: list[str] | None, *, as_json: bool
) -> None:
    store, name = _at(disk)
    with job_observer(as_json=as_json) as observer:
        result = work(
            store,
            name,
            allow_paths=allow_path or [],
            progress=lambda done, total: observer.progress(f"{verb} {disk.name}", done, total),
        )
    facts = {"path": str(disk), "bytes_before": result.before, "bytes_after": result.after}
    sizes = f"{human_size(result.before)} before, {human_size(result.after)} now"
    _report(facts, f"{disk}: {sizes}", as_json=as_json)


def rename(
    old: VmdkArgument,
    new: Annotated[Path, typer.Argument(help="Its new name, in the same folder or another.", readable=False)],
    force: Annotated[
        bool, typer.Option("--force", help="Even if other disks have it as their parent; they will miss it.")
    ] = False,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rename a disk with all its files, or move it to another folder; nothing is ever replaced.

    Example: vdkit rename vm/vm.vmdk archive/old-vm.vmdk
    """
    from vdkit.disklib import hosted

    hosted.rename(old, new, force=force, allow_paths=allow_path or [])
    _report({"path": str(new), "old": str(old)}, f"{old} is now {new}", as_json=as_json)


def delete(
    disk: VmdkArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Even if other disks have it as their parent; they are lost.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove a disk with all its files, but not its parents.

    Example: vdkit delete vm/vm-000001.vmdk
    """
    from vdkit.disklib import hosted

    if not force:
        check_no_children(disk, "which would be lost")
    hosted.unlink(disk)
    _report({"path": str(disk)}, f"{disk}: removed", as_json=as_json)


def attach(
    parent: Annotated[Path, typer.Argument(help="The disk that is to be the parent.", readable=False)],
    child: Annotated[Path, typer.Argument(help="The delta that was made from it.", readable=False)],
    check: Annotated[bool, typer.Option("--check", help="Only tell whether it is possible.")] = False,
    force_cid: Annotated[
        bool,
        typer.Option(
            "--force-cid", help="Take a parent of another content id: you know that its bytes are right."
        ),
    ] = False,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """Record in a child where its parent is, after one of them was moved; refused if they do not fit.

    Example: vdkit attach base/vm.vmdk vm/vm-000001.vmdk
    """
    from vdkit.vmdk import open_disk
    from vdkit.vmdk.admin import attach_disk, check_attach

    parent_store, parent_name = _at(parent)
    store, name = _at(child)
    allowed = [*(allow_path or []), str(parent.parent.absolute())]
    warnings: tuple[str, ...] = ()
    if check:
        with (
            open_disk(parent_store, parent_name, allow_paths=allowed) as above,
            open_disk(store, name, single_link=True, allow_paths=allowed) as leaf,
        ):
            check_attach(above, leaf)
    else:
        same = Path(store.name).samefile(parent_store.name)
        warnings = attach_disk(
            store,
            parent_name,
            name,
            parent_store=store if same else parent_store,
            force_cid=force_cid,
            allow_paths=allowed,
        )
    for warning in warnings:
        print_note(f"warning: {warning}")
    verb = "can be attached" if check else "attached"
    facts = {"parent": str(parent), "child": str(child), "attached": not check, "warnings": list(warnings)}
    _report(facts, f"{child}: {verb} to {parent}", as_json=as_json)


def meta(
    disk: VmdkArgument,
    key: Annotated[str | None, typer.Argument(help="One entry, for example uuid.")] = None,
    value: Annotated[str | None, typer.Argument(help="What to write; without it the entry is read.")] = None,
    allow_path: AllowOption = None,
    as_json: JsonOption = False,
) -> None:
    """List the entries of a disk's database (its "ddb." lines), read one, or write one.

    Example: vdkit meta vm/vm.vmdk uuid
    """
    from vdkit.vmdk import open_disk
    from vdkit.vmdk.admin import read_metadata, read_metadata_key, write_metadata

    if key is not None and key.casefold().startswith("ddb."):
        key = key[4:]
    if key == "":
        raise UsageError("the key is empty")
    store, name = _at(disk)
    if value is not None and key is not None:
        with open_disk(store, name, writable=True, allow_paths=allow_path or []) as opened:
            write_metadata(opened, key, value)
        _report({"path": str(disk), "metadata": {key: value}}, f"{key}: {value}", as_json=as_json)
        return
    with open_disk(store, name, allow_paths=allow_path or []) as opened:
        found = read_metadata(opened) if key is None else {key: read_metadata_key(opened, key)}
    if as_json:
        print_json({"path": str(disk), "metadata": found})
    elif key is not None:
        print_text(found[key])
    else:
        for entry, text in found.items():
            print_text(f"{entry}: {text}")
