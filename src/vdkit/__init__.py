"""vdkit: the open Virtual Disk Development Kit.

The names below are the public API; everything else may change between minor versions. They are loaded when
they are first used, so that ``import vdkit`` costs nothing.

=========================  ==============================================================================
opening                    :func:`open_disk` (a local VMDK or raw image), :func:`connect` (disks of a host)
making                     :func:`convert`, :class:`CreateParams` with :meth:`Connection.create` and its like
looking at one             :func:`describe`, :func:`allocation_map`, :func:`compare_disks`
VixDiskLib's shape         :class:`Connection`, :class:`DiskHandle`, :class:`DiskType`, :class:`OpenFlags`
a host                     :class:`Session`, :class:`ConnectParams`, :class:`Trust`, :class:`Secret`
what a disk is             :class:`BlockDevice`, :class:`WritableDevice`, :class:`Extent`, :class:`RangeSet`
what can go wrong          :class:`VixError` and its tree in :mod:`vdkit.errors`
=========================  ==============================================================================
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vdkit.errors import VixError
from vdkit.version import VERSION

if TYPE_CHECKING:
    from vdkit.block.device import BlockDevice, WritableDevice
    from vdkit.block.extent import Extent, ExtentKind, RangeSet
    from vdkit.disklib.comparing import CompareResult, compare_disks
    from vdkit.disklib.connection import Connection, ConnectParams, connect
    from vdkit.disklib.constants import AdapterType, DiskType, OpenFlags
    from vdkit.disklib.handle import DiskHandle
    from vdkit.disklib.hosted import CreateParams
    from vdkit.disklib.local import allocation_map, convert, describe
    from vdkit.disklib.opening import open_local as open_disk
    from vdkit.net.secret import Secret
    from vdkit.net.trust import Trust
    from vdkit.vsphere.session import Session

__version__ = VERSION

__all__ = [
    "AdapterType",
    "BlockDevice",
    "CompareResult",
    "ConnectParams",
    "Connection",
    "CreateParams",
    "DiskHandle",
    "DiskType",
    "Extent",
    "ExtentKind",
    "OpenFlags",
    "RangeSet",
    "Secret",
    "Session",
    "Trust",
    "VixError",
    "WritableDevice",
    "__version__",
    "allocation_map",
    "compare_disks",
    "connect",
    "convert",
    "describe",
    "open_disk",
]

#: Where each lazily loaded name is defined, and what it is called there.
_HOMES = {
    "BlockDevice": "vdkit.block.device:BlockDevice",
    "WritableDevice": "vdkit.block.device:WritableDevice",
    "Extent": "vdkit.block.extent:Extent",
    "ExtentKind": "vdkit.block.extent:ExtentKind",
    "RangeSet": "vdkit.block.extent:RangeSet",
    "Connection": "vdkit.disklib.connection:Connection",
    "ConnectParams": "vdkit.disklib.connection:ConnectParams",
    "CreateParams": "vdkit.disklib.hosted:CreateParams",
    "connect": "vdkit.disklib.connection:connect",
    "AdapterType": "vdkit.disklib.constants:AdapterType",
    "DiskType": "vdkit.disklib.constants:DiskType",
    "OpenFlags": "vdkit.disklib.constants:OpenFlags",
    "DiskHandle": "vdkit.disklib.handle:DiskHandle",
    "CompareResult": "vdkit.disklib.comparing:CompareResult",
    "compare_disks": "vdkit.disklib.comparing:compare_disks",
    "allocation_map": "vdkit.disklib.local:allocation_map",
    "convert": "vdkit.disklib.local:convert",
    "describe": "vdkit.disklib.local:describe",
    "open_disk": "vdkit.disklib.opening:open_local",
    "Secret": "vdkit.net.secret:Secret",
    "Trust": "vdkit.net.trust:Trust",
    "Session": "vdkit.vsphere.session:Session",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'vdkit' has no attribute {name!r}")
    module, _, attribute = home.partition(":")
    found: object = getattr(importlib.import_module(module), attribute)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
