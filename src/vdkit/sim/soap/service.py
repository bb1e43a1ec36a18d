"""The service instance, and the ticket service that its internal content names.

The facts of the ticket calls are those of our NFC specification, sections 2 and 14.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

from pyVmomi import vim, vmodl

from vdkit.net.secret import Secret
from vdkit.sim.firstclass import DatastoreGrant
from vdkit.sim.places import Entity
from vdkit.sim.soap.faults import invalid_argument
from vdkit.sim.soap.objects import Call, Managed, call, prop
from vdkit.sim.soap.world import fault_named
from vdkit.sim.tickets import Access
from vdkit.wire.vim import internal

if TYPE_CHECKING:
    from vdkit.sim.soap.world import World

#: What NfcGetServerNfcLibVersion answers: what 8.0 hosts say (0 on 6.5, 2 on 6.7, 7 on 7.0).
NFC_LIBRARY_VERSION = 11
BUILD = "24022510"
#: Ids of the well-known objects: on a stand-alone host, and on a vCenter.
MANAGERS = {
    "sessionManager": ("ha-sessionmgr", "SessionManager"),
    "viewManager": ("ViewManager", "ViewManager"),
    "taskManager": ("ha-taskmgr", "TaskManager"),
    "searchIndex": ("ha-searchindex", "SearchIndex"),
    "fileManager": ("ha-nfc-file-manager", "FileManager"),
    "virtualDiskManager": ("ha-vdiskmanager", "virtualDiskManager"),
    "vStorageObjectManager": ("ha-vstorage-object-manager", "VStorageObjectManager"),
    "nfcService": ("ha-nfc-service", "nfcService"),
    "authorizationManager": ("ha-authmgr", "AuthorizationManager"),
    "licenseManager": ("ha-license-manager", "LicenseManager"),
}


class ServiceInstance(Managed):
    kind = "ServiceInstance"

    def __init__(self, world: World) -> None:
        super().__init__("ServiceInstance")
        self._world = world

    def _id(self, manager: str) -> str:
        return self._world.manager_id(*MANAGERS[manager])

    @prop("serverClock")
    def clock(self) -> datetime:
        return self._world.clock.now()

    @call("CurrentTime")
    def current_time(self, _call: Call) -> datetime:
        return self._world.clock.now()

    @prop("content")
    def content(self) -> Any:
        world = self._world
        return vim.ServiceInstanceContent(
            rootFolder=vim.Folder(world.inventory.root_folder.moref),
            propertyCollector=vmodl.query.PropertyCollector(world.collector_id),
            viewManager=vim.view.ViewManager(self._id("viewManager")),
            about=self._about(),
            sessionManager=vim.SessionManager(self._id("sessionManager")),
            taskManager=vim.TaskManager(self._id("taskManager")),
            searchIndex=vim.SearchIndex(self._id("searchIndex")),
            fileManager=vim.FileManager(self._id("fileManager")),
            authorizationManager=vim.AuthorizationManager(self._id("authorizationManager")),
            licenseManager=vim.LicenseManager(self._id("licenseManager")),
            virtualDiskManager=vim.VirtualDiskManager(self._id("virtualDiskManager")),
            vStorageObjectManager=_storage_manager(world)(self._id("vStorageObjectManager")),
        )

    @call("RetrieveServiceContent")
    def retrieve_content(self, _call: Call) -> Any:
        return self.content()

    @call("RetrieveInternalContent")
    def retrieve_internal_content(self, _call: Call) -> Any:
        kind = internal.content_type()
        return kind(nfcService=self._id("nfcService"))

    def _about(self) -> Any:
        world = self._world
        api = world.scenario.api_version
        version = ".".join(api.split(".")[:3])
        name = "VMware vCenter Server" if world.is_vcenter else "VMware ESXi"
        return vim.AboutInfo(
            name=name,
            fullName=f"{name} {version} build-{BUILD}",
            vendor="VMware, Inc.",
            version=version,
            build=BUILD,
            localeVersion="INTL",
            localeBuild="000",
            osType="linux-x64" if world.is_vcenter else "vmnix-x86",
            productLineId="vpx" if world.is_vcenter else "embeddedEsx",
            apiType="VirtualCenter" if world.is_vcenter else "HostAgent",
            apiVersion=api,
            instanceUuid=world.inventory.instance_uuid if world.is_vcenter else None,
            licenseProductName=("VMware VirtualCenter Server" if world.is_vcenter else "VMware ESX Server"),
            licenseProductVersion=version.split(".")[0] + ".0",
        )


def _storage_manager(world: World) -> Any:
    host, vcenter = vim.vslm.host.VStorageObjectManager, vim.vslm.vcenter.VStorageObjectManager
    return vcenter if world.is_vcenter else host


class NfcService(Managed):
    """Hands out tickets for the data port."""

    kind = "NfcService"

    def __init__(self, moid: str, world: World) -> None:
        super().__init__(moid)
        self._world = world

    def _ticket(self, call: Call, access: Access, key: int | None) -> Any:
        world = self._world
        machine = world.machine_of(call.vm, "vm")
        host = world.inventory.places.host_of(machine)
        self._before_issue(host)
        return self._answer(call, host, world.tickets.issue(access, machine, key))

    def _before_issue(self, host: Entity) -> None:
        world = self._world
        if world.scenario.ticket_error is not None:
            raise fault_named(world.scenario.ticket_error)
        world.check_host(host)
        world.before_ticket()
        world.tickets.lifetime = world.scenario.ticket_seconds

    def _answer(self, call: Call, host: Entity, secret: Secret) -> Any:
        world = self._world
        place = world.data_ports[host.moref]
        return vim.HostServiceTicket(
            host=(place.address or call.client.server) if world.is_vcenter else None,
            port=world.scenario.ticket_port or place.port,
            sslThumbprint=place.thumbprint,
            service="vpxa-nfc" if world.is_vcenter else "nfc",
            serviceVersion="1.1",
            sessionId=secret.reveal(),
        )

    @call("NfcGetVmFiles")
    def get_vm_files(self, call: Call) -> Any:
        return self._ticket(call, Access.MACHINE_FILES, None)

    @call("NfcRandomAccessOpenReadonly")
    def open_readonly(self, call: Call) -> Any:
        return self._ticket(call, Access.READ_DISK, call.diskDeviceKey)

    @call("NfcRandomAccessOpenDisk")
    def open_disk(self, call: Call) -> Any:
        return self._ticket(call, Access.WRITE_DISK, call.diskDeviceKey)

    @call("NfcFileManagement")
    def file_management(self, call: Call) -> Any:
        """A ticket for files of a datastore. That it opens disks is our assumption."""
        world = self._world
        store = next((one for one in world.inventory.datastores if one.moref == call.ds._moId), None)
        if store is None:
            raise invalid_argument("ds")
        host = world.inventory.places.hosts[0]
        self._before_issue(host)
        secret = world.tickets.issue_grant(DatastoreGrant(world.first_class_disks, store), host.moref)
        return self._answer(call, host, secret)

    @call("NfcGetServerNfcLibVersion")
    def library_version(self, call: Call) -> int:
        if call.hostForAccess is None or self._world.find(call.hostForAccess, call.session) is None:
            raise invalid_argument("hostForAccess")
        return NFC_LIBRARY_VERSION
