"""govmomi's simulator, started by the tests' own small program, answers pyVmomi."""

from __future__ import annotations

import pytest
from pyVim.connect import Disconnect, SmartConnect

import gotools


@pytest.mark.witness("go")
@pytest.mark.parametrize("esx", [False, True])
def test_vcsim_answers(esx: bool) -> None:
    with gotools.vcsim(esx=esx) as server:
        service = SmartConnect(
            host=server.host,
            port=server.port,
            user=server.user,
            pwd=server.password,
            disableSslCertValidation=True,
        )
        try:
            about = service.RetrieveContent().about
            assert about.apiType == ("HostAgent" if esx else "VirtualCenter")
            assert len(server.sha1.split(":")) == 20
        finally:
            Disconnect(service)
