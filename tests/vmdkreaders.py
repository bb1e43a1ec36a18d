"""Other people's readers of VMDKs, each as a function from a file to the bytes of the whole disk.

A reader that refuses raises :class:`Refused`. The text of the refusal is its own.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


class Refused(Exception):
    """The reader said no, or failed."""


def run(*command: str | Path, stdin: bytes | None = None) -> bytes:
    done = subprocess.run(
        [str(part) for part in command], input=stdin, capture_output=True, timeout=120, check=False
    )
    if done.returncode != 0:
        raise Refused(f"{command[0]}: {(done.stdout + done.stderr)[-400:].decode(errors='replace')}")
    return done.stdout


def qemu_img(path: Path) -> bytes:
    out = path.with_suffix(".qemu.raw")
    try:
        run("qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, out)
        return out.read_bytes()
    finally:
        out.unlink(missing_ok=True)


def seven_zip(path: Path) -> bytes:
    """7-Zip exits with 1 where it has only a warning."""
    done = subprocess.run(["7z", "e", "-so", "-tvmdk", path], capture_output=True, timeout=120, check=False)
    if done.returncode != 0:
        raise Refused((done.stdout + done.stderr)[-400:].decode(errors="replace"))
    return done.stdout


def pyvmdk(path: Path) -> bytes:
    """libvmdk's binding; the parents are given by hand, by the hints in the descriptors."""
    import pyvmdk as library

    handles: list[Any] = []
    try:
        handle, place = library.handle(), path
        top = handle
        while True:
            handle.open(str(place))
            handles.append(handle)
            handle.open_extent_data_files()
            hint = handle.get_parent_filename()
            if not hint:
                break
            parent = library.handle()
            place = place.parent / hint
            parent.open(str(place))
            parent.open_extent_data_files()
            handle.set_parent(parent)
            handles.append(parent)
            handle = parent
            if not handle.get_parent_filename():
                break
            raise Refused("longer chains are not tried")
        size = top.get_media_size()
        return b"".join(
            top.read_buffer_at_offset(min(1 << 20, size - start), start) for start in range(0, size, 1 << 20)
        )
    except OSError as error:
        raise Refused(str(error)) from error
    finally:
        for opened in handles:
            opened.close()


def dissect(path: Path) -> bytes:
    from dissect.hypervisor.disk.vmdk import VMDK

    try:
        disk = VMDK(path)
        disk.seek(0)
        data: bytes = disk.read(disk.size)
    except Exception as error:
        raise Refused(repr(error)) from error
    return data


@contextmanager
def _mounted(path: Path) -> Iterator[Path]:
    where = path.parent / "mounted"
    where.mkdir()
    try:
        run("vmdkmount", path, where)
        for _ in range(200):
            if os.path.ismount(where):
                break
            time.sleep(0.02)
        yield where
    finally:
        subprocess.run(["umount", where], capture_output=True, timeout=60, check=False)
        where.rmdir()


def vmdkmount(path: Path) -> bytes:
    """Entries are vmdk1 for the base and so on; the last is the disk."""
    with _mounted(path) as where:
        return sorted(where.iterdir())[-1].read_bytes()


READERS: dict[str, Callable[[Path], bytes]] = {
    "qemu-img": qemu_img,
    "7z": seven_zip,
    "pyvmdk": pyvmdk,
    "dissect.hypervisor": dissect,
    "vmdkmount": vmdkmount,
}
