"""A volume, or a folder of it, as a store that refuses every change."""

from __future__ import annotations

from typing import NoReturn

from vdkit.block.device import WritableDevice
from vdkit.errors import NotFound, NotSupported, OutsideStore
from vdkit.vmfs.descriptor import Descriptor, FileType
from vdkit.vmfs.file import VmfsFile
from vdkit.vmfs.volume import Volume


class VmfsStore:
    """Files of ``volume`` below ``folder``. Does not own the volume."""

    def __init__(self, volume: Volume, folder: str = "") -> None:
        self._volume = volume
        self._folder = folder

    @property
    def name(self) -> str:
        return f"{self._volume.name} {self._folder}".rstrip()

    def open(self, name: str) -> VmfsFile:
        found, path = self._find(name)
        if found.type is FileType.DIRECTORY:
            raise OutsideStore(f"{self.name}/{name}: a folder, not a file")
        if found.type is FileType.SYMLINK:
            raise OutsideStore(f"{self.name}/{name}: a symbolic link")
        return self._volume.file(found, path)

    def exists(self, name: str) -> bool:
        try:
            self._find(name)
        except NotFound:
            return False
        return True

    def list(self, folder: str = "") -> list[str]:
        found, path = self._find(folder) if folder else (self._volume.resolve(self._folder), self._folder)
        names = [
            f"{entry.name}/" if entry.type == FileType.DIRECTORY else entry.name
            for entry in self._volume.entries(found, path)
            if entry.type != FileType.SYSTEM
        ]
        return sorted(names)

    def substore(self, folder: str) -> VmfsStore:
        found, path = self._find(folder)
        if found.type is not FileType.DIRECTORY:
            raise NotFound(f"{self.name}/{folder}: not a folder")
        return VmfsStore(self._volume, path)

    def own_path(self, path: str) -> str | None:
        """``/vmfs/volumes/THIS/vm/x.vmdk``, as hosts write it, as a name here; None if it is elsewhere."""
        inside = self._volume.own_path(path)
        if inside is None or not self._folder:
            return inside
        return inside.removeprefix(f"{self._folder}/") if inside.startswith(f"{self._folder}/") else None

    def _find(self, name: str) -> tuple[Descriptor, str]:
        """What ``name`` means, and its path from the volume's root. Raises NotFound, OutsideStore."""
        parts = name.split("/")
        if not name or name.startswith("/") or any(part in ("", ".", "..") for part in parts) or "\0" in name:
            raise OutsideStore(f"{self.name}: {name!r} is no name inside it")
        path = f"{self._folder}/{name}" if self._folder else name
        return self._volume.resolve(path), path

    # -- what a host would have to do ------------------------------------------------------------

    def open_writable(self, name: str) -> WritableDevice:
        self._refuse(f"write {name}")

    def create(self, name: str, size: int = 0) -> WritableDevice:
        self._refuse(f"make {name} of {size} bytes")

    def rename(self, old: str, new: str, *, replace: bool = False) -> None:
        self._refuse(f"rename {old} to {new}{' in its place' if replace else ''}")

    def remove(self, name: str) -> None:
        self._refuse(f"remove {name}")

    def make_folder(self, name: str) -> None:
        self._refuse(f"make the folder {name}")

    def _refuse(self, what: str) -> NoReturn:
        raise NotSupported(
            f"{self.name}: cannot {what}: a LUN that hosts have mounted is only read",
            remedy="change the datastore through a host",
        )
