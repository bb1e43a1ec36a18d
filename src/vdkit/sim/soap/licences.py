"""The licence of the host: an evaluation, or the free one that lets programs only read.

Source: the vSphere Web Services API reference (LicenseManager, LicenseManagerLicenseInfo), and the edition of
the free ESXi licence as people have published it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyVmomi import vim

from vdkit.sim.soap.objects import Managed, prop

if TYPE_CHECKING:
    from vdkit.sim.soap.world import World

#: The edition of the free licence.
FREE = "esxBasic"
EVALUATION = "eval"


class LicenseManager(Managed):
    kind = "LicenseManager"

    def __init__(self, moid: str, world: World) -> None:
        super().__init__(moid)
        self._world = world

    @prop("licensedEdition")
    def edition(self) -> str:
        return FREE if self._world.scenario.free_licence else EVALUATION

    @prop("licenses")
    def licences(self) -> list[Any]:
        free = self._world.scenario.free_licence
        return [
            vim.LicenseManager.LicenseInfo(
                licenseKey="00000-00000-00000-00000-00000",
                editionKey=self.edition(),
                name="vSphere Hypervisor" if free else "Evaluation Mode",
                total=0,
                costUnit="cpuPackage",
            )
        ]
