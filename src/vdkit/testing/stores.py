"""The contract of a store, as tests: subclass, say how to make one, run pytest.

::

    from vdkit.testing.stores import StoreConformance

    class TestMyStore(StoreConformance):
        def make(self, folder: Path) -> Store:
            return MyStore(...)

The rules are those of :mod:`vdkit.block.store`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import pytest

from vdkit.block.device import WritableDevice
from vdkit.block.store import Store
from vdkit.errors import AlreadyExists, CorruptDisk, NotFound, OutsideStore, ReadOnly, StoreError
from vdkit.testing.devices import in_threads, read

#: Names that lead out of a store, or are none.
BAD_NAMES = ("", "/etc/passwd", "..", "../x", "a/../../x", "a//b", "a/", "./a", "a/.", "a\0b", "/")


def put(store: Store, name: str, content: bytes) -> None:
    with store.create(name, len(content)) as device:
        if content:
            device.write_from(0, content)
        device.flush()


def get(store: Store, name: str) -> bytes:
    with store.open(name) as device:
        return read(device, 0, device.capacity)


class StoreConformance(ABC):
    """Every rule for a store that starts empty. See the module."""

    @abstractmethod
    def make(self, folder: Path) -> Store:
        """A new, empty store; ``folder`` is empty and its own."""

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return self.make(tmp_path)

    def test_is_a_store(self, store: Store) -> None:
        assert isinstance(store, Store)
        assert store.name
        assert store.list() == []

    def test_create_write_open(self, store: Store) -> None:
        put(store, "a.vmdk", b"hello")
        assert get(store, "a.vmdk") == b"hello"
        assert store.exists("a.vmdk")
        assert not store.exists("b.vmdk")
        assert store.list() == ["a.vmdk"]
        with store.open("a.vmdk") as device:
            assert not device.writable
            assert device.alignment == 1
            assert store.name in device.name
            assert "a.vmdk" in device.name
            if isinstance(device, WritableDevice):
                with pytest.raises(ReadOnly):
                    device.write_from(0, b"x")

    def test_created_is_zero(self, store: Store) -> None:
        with store.create("a", 100_000) as device:
            assert device.capacity == 100_000
            assert device.writable
            assert read(device, 0, 100_000) == bytes(100_000)
        assert get(store, "a") == bytes(100_000)

    def test_create_never_replaces(self, store: Store) -> None:
        put(store, "a", b"old")
        with pytest.raises(AlreadyExists):
            store.create("a")
        store.make_folder("f")
        with pytest.raises(AlreadyExists):
            store.create("f")
        assert get(store, "a") == b"old"

    def test_create_is_exclusive_among_threads(self, store: Store) -> None:
        made: list[int] = []

        def work(number: int) -> None:
            for i in range(10):
                try:
                    store.create(f"n{i}", number).close()
                except AlreadyExists:
                    continue
                made.append(i)

        in_threads(work, 4)
        assert sorted(made) == list(range(10))

    def test_open_writable_and_resize(self, store: Store) -> None:
        put(store, "a", b"0123456789")
        with store.open_writable("a") as device:
            device.write_from(2, b"xy")
            device.resize(12)
            device.write_from(11, b"z")
            device.flush()
        assert get(store, "a") == b"01xy456789\0z"
        with store.open_writable("a") as device:
            device.resize(3)
            device.resize(6)
        assert get(store, "a") == b"01x\0\0\0"

    def test_openers_see_each_other(self, store: Store) -> None:
        put(store, "a", b"0123456789")
        with store.open_writable("a") as writer, store.open("a") as reader:
            writer.write_from(0, b"ab")
            assert read(reader, 0, 4) == b"ab23"

    def test_cut_short_behind_ones_back(self, store: Store) -> None:
        put(store, "a", b"x" * 100_000)
        with store.open("a") as reader, store.open_writable("a") as writer:
            writer.resize(10)
            with pytest.raises((StoreError, CorruptDisk), match="a"):
                read(reader, 0, 100_000)
            assert read(reader, 0, 10) == b"x" * 10

    def test_missing(self, store: Store) -> None:
        calls: list[Callable[[], object]] = [
            lambda: store.open("no"),
            lambda: store.open_writable("no"),
            lambda: store.remove("no"),
            lambda: store.rename("no", "new"),
            lambda: store.list("no"),
            lambda: store.substore("no"),
            lambda: store.create("no/a"),
            lambda: store.open("no/a"),
        ]
        for call in calls:
            with pytest.raises(NotFound):
                call()

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_names_that_lead_out(self, store: Store, name: str) -> None:
        store.make_folder("a")
        put(store, "b", b"")
        calls: list[Callable[[], object]] = [
            lambda: store.open(name),
            lambda: store.open_writable(name),
            lambda: store.create(name),
            lambda: store.exists(name),
            lambda: store.rename("b", name),
            lambda: store.rename(name, "c"),
            lambda: store.remove(name),
            lambda: store.make_folder(name),
            lambda: store.substore(name),
        ]
        if name:
            calls.append(lambda: store.list(name))
        for call in calls:
            with pytest.raises(OutsideStore):
                call()

    def test_a_folder_is_no_object(self, store: Store) -> None:
        store.make_folder("f")
        with pytest.raises(OutsideStore):
            store.open("f")
        with pytest.raises(OutsideStore):
            store.open_writable("f")

    def test_folders(self, store: Store) -> None:
        store.make_folder("vm/deep")
        store.make_folder("vm/deep")
        put(store, "vm/a", b"1")
        put(store, "vm/deep/b", b"2")
        assert store.list() == ["vm/"]
        assert store.list("vm") == ["a", "deep/"]
        assert store.exists("vm")
        assert get(store, "vm/deep/b") == b"2"
        with pytest.raises(StoreError):
            store.remove("vm")
        with pytest.raises(StoreError):
            store.make_folder("vm/a")
        store.remove("vm/a")
        store.remove("vm/deep/b")
        store.remove("vm/deep")
        store.remove("vm")
        assert store.list() == []

    def test_substore(self, store: Store) -> None:
        store.make_folder("vm/deep")
        inner = store.substore("vm")
        put(inner, "a", b"1")
        put(inner, "deep/b", b"2")
        assert get(store, "vm/a") == b"1"
        assert get(inner.substore("deep"), "b") == b"2"
        assert inner.list() == ["a", "deep/"]
        inner.rename("a", "deep/a")
        assert store.list("vm/deep") == ["a", "b"]
        assert store.name in inner.name
        with pytest.raises(OutsideStore):
            inner.open("../vm/deep/a")

    def test_rename(self, store: Store) -> None:
        put(store, "a", b"1")
        put(store, "b", b"2")
        with pytest.raises(AlreadyExists):
            store.rename("a", "b")
        assert (get(store, "a"), get(store, "b")) == (b"1", b"2")
        store.rename("a", "b", replace=True)
        assert store.list() == ["b"]
        assert get(store, "b") == b"1"
        store.rename("b", "c")
        assert store.list() == ["c"]
        store.make_folder("f")
        for replace in (False, True):
            with pytest.raises(AlreadyExists):
                store.rename("c", "f", replace=replace)
        store.rename("f", "g")
        assert store.list() == ["c", "g/"]

    def test_an_open_object_survives_its_name(self, store: Store) -> None:
        put(store, "a", b"old")
        put(store, "b", b"new")
        with store.open("a") as device:
            store.rename("b", "a", replace=True)
            assert read(device, 0, 3) == b"old"
        assert get(store, "a") == b"new"
        with store.open("a") as device:
            store.remove("a")
            assert read(device, 0, 3) == b"new"
        assert not store.exists("a")
