"""The stores of the block layer keep the contract."""

from __future__ import annotations

from pathlib import Path

from vdkit.block.local import FolderStore
from vdkit.block.memory import MemoryStore
from vdkit.block.store import Store
from vdkit.testing.stores import StoreConformance


class TestFolderStore(StoreConformance):
    def make(self, folder: Path) -> Store:
        return FolderStore(folder)


class TestFolderSubstore(StoreConformance):
    def make(self, folder: Path) -> Store:
        outer = FolderStore(folder)
        outer.make_folder("in/side")
        return outer.substore("in").substore("side")


class TestMemoryStore(StoreConformance):
    def make(self, folder: Path) -> Store:
        return MemoryStore("ram")


class TestMemorySubstore(StoreConformance):
    def make(self, folder: Path) -> Store:
        outer = MemoryStore("ram")
        outer.make_folder("in/side")
        return outer.substore("in").substore("side")
