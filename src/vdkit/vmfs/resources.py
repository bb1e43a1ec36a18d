"""Resource files: where in one the n-th resource of a cluster is.

Source of facts: our notes on VMFS, section 2.5.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from vdkit.errors import CorruptDisk

HEADER_SIZE: Final = 0x58
_MAX_RESOURCE: Final = 1 << 26


@dataclass(frozen=True, slots=True)
class Geometry:
    """The header of a resource file. Sizes and offsets are bytes."""

    per_cluster: int
    clusters_per_group: int
    first_group: int
    size: int
    group_size: int
    child: int
    """Offset of a second header (VMFS-6, small blocks); 0 for none."""

    def offset(self, cluster: int, resource: int, cluster_header: int, where: str) -> int:
        """Offset in the resource file."""
        if resource >= self.per_cluster:
            raise CorruptDisk(f"{where}: resource {resource} of a cluster of {self.per_cluster}")
        group, inside = divmod(cluster, self.clusters_per_group)
        return (
            self.first_group
            + group * self.group_size
            + self.clusters_per_group * cluster_header
            + (inside * self.per_cluster + resource) * self.size
        )


def parse_geometry(raw: bytes, cluster_header: int, where: str) -> Geometry:
    """Raises CorruptDisk."""
    per_cluster, clusters, first, size, group = struct.unpack_from("<5I", raw)
    (child,) = struct.unpack_from("<I", raw, 0x34)
    if not 0 < per_cluster <= 0x2000 or not 0 < clusters <= 0x10000 or size > _MAX_RESOURCE:
        raise CorruptDisk(
            f"{where}: a resource file of clusters of {per_cluster} resources of {size} bytes, "
            f"{clusters} in a group"
        )
    # The small blocks of VMFS-6 have their headers elsewhere, and nothing else.
    if size and group < clusters * (cluster_header + per_cluster * size):
        raise CorruptDisk(f"{where}: groups of {group} bytes cannot hold what is in them")
    return Geometry(per_cluster, clusters, first, size, group, child)
