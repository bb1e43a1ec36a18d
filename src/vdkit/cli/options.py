"""Options that several commands share, and what they turn into."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from vdkit.cli.output import print_note
from vdkit.cli.passwords import ask_password, read_password_descriptor, read_password_file
from vdkit.cli.settings import HostSettings, Settings, current_environment
from vdkit.net.secret import Secret

if TYPE_CHECKING:
    from vdkit.net.budget import HostBudgets
    from vdkit.vsphere.session import Session

#: Seconds that a job waits for its turn at a busy host: others may be long at work, and the reason is shown.
HOST_WAIT = 3600.0

HostOption = Annotated[
    str | None,
    typer.Option("--host", "-H", metavar="HOST[:PORT]", help="ESXi or vCenter [VDKIT_HOST, GOVC_URL]."),
]
UserOption = Annotated[str | None, typer.Option("--user", "-u", help="Account [VDKIT_USER, GOVC_USERNAME].")]
PasswordFileOption = Annotated[
    Path | None,
    typer.Option(
        "--password-file", help="File with the password, readable by its owner only [VDKIT_PASSWORD_FILE]."
    ),
]
PasswordFdOption = Annotated[
    int | None, typer.Option("--password-fd", help="Open descriptor to read the password from.", min=0)
]
ThumbprintOption = Annotated[
    str | None,
    typer.Option("--thumbprint", help="SHA-256 (or SHA-1) of the host's certificate [VDKIT_THUMBPRINT]."),
]
CaFileOption = Annotated[
    str | None,
    typer.Option(
        "--ca-file",
        help="Certificate authorities to trust: a file, or 'system' [VDKIT_CA_FILE, GOVC_TLS_CA_CERTS].",
    ),
]
KnownHostsOption = Annotated[
    str | None,
    typer.Option("--known-hosts", help="File of hosts that are trusted [VDKIT_KNOWN_HOSTS]."),
]
CookieFileOption = Annotated[
    Path | None,
    typer.Option(
        "--cookie-file",
        help="File with the cookie of an open session, in place of user and password [VDKIT_COOKIE_FILE].",
    ),
]
CookieFdOption = Annotated[
    int | None, typer.Option("--cookie-fd", help="Open descriptor to read that cookie from.", min=0)
]
LegacyTlsOption = Annotated[
    bool,
    typer.Option(
        "--legacy-tls", help="Allow TLS older than 1.2, for an old host; unsafe [VDKIT_LEGACY_TLS]."
    ),
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", help="Configuration file (TOML) [VDKIT_CONFIG].")
]
ModeOption = Annotated[
    str | None,
    typer.Option(
        "--mode",
        "--transports",
        metavar="LIST",
        help="Transport modes to try, such as nbdssl:nbd; vdkit modes tells the default [VDKIT_TRANSPORTS].",
    ),
]
HostMemoryOption = Annotated[
    int | None,
    typer.Option(
        "--host-memory",
        metavar="MIB",
        min=1,
        help="NFC memory of a host that all runs of this machine share; its version's if not given "
        "[VDKIT_HOST_MEMORY].",
    ),
]
HostConnectionsOption = Annotated[
    int | None,
    typer.Option(
        "--host-connections",
        metavar="N",
        min=1,
        help="Disks of a host that all of them have open at once [VDKIT_HOST_CONNECTIONS].",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@dataclass(frozen=True)
class HostFlags:
    """The flags that say which host; they end here and become :class:`HostSettings`.

    A command that takes them has a parameter ``flags`` and the decorator :func:`host_options`.
    """

    host: HostOption = None
    user: UserOption = None
    password_file: PasswordFileOption = None
    password_fd: PasswordFdOption = None
    thumbprint: ThumbprintOption = None
    ca_file: CaFileOption = None
    config: ConfigOption = None
    known_hosts: KnownHostsOption = None
    cookie_file: CookieFileOption = None
    cookie_fd: CookieFdOption = None
    legacy_tls: LegacyTlsOption = False

    def resolve(self) -> HostSettings:
        settings = Settings(current_environment(), self.config)
        found = settings.host(
            host=self.host,
            user=self.user,
            thumbprint=self.thumbprint,
            ca_file=self.ca_file,
            password=self._password(),
            cookie=self._cookie(),
            known_hosts=self.known_hosts,
            legacy_tls=self.legacy_tls,
        )
        for warning in settings.warnings:
            print_note(f"warning: {warning}")
        return found

    def transports(self, named: str | None) -> str | None:
        """The list of transport modes that was named, here or in the settings; None for the default."""
        return Settings(current_environment(), self.config).text("transports", named)

    def budget(self, memory: int | None, connections: int | None) -> HostBudgets:
        """How hosts are shared: ``memory`` in MiB and ``connections``, here or in the settings."""
        from vdkit.net.budget import HostBudgets

        settings = Settings(current_environment(), self.config)
        mib, folder = settings.number("host_memory", memory), settings.text("limits_folder")
        wait = settings.number("host_wait")
        return HostBudgets(
            folder=None if folder is None else Path(folder),
            memory=None if mib is None else mib << 20,
            connections=settings.number("host_connections", connections),
            wait=HOST_WAIT if wait is None else wait,
        )

    def login(self) -> Session:
        """A session with the host that the flags, the environment or the file name."""
        from vdkit.vsphere.session import Session

        found = self.resolve()
        if found.cookie is not None:
            return Session.from_cookie(found.host, found.port, found.cookie, found.trust)
        password = found.password or ask_password(found.user, found.host)
        return Session.login(found.host, found.port, found.user, password, found.trust)

    def _password(self) -> Secret | None:
        if self.password_fd is not None:
            return read_password_descriptor(self.password_fd)
        if self.password_file is not None:
            return read_password_file(self.password_file)
        return None

    def _cookie(self) -> Secret | None:
        if self.cookie_fd is not None:
            return read_password_descriptor(self.cookie_fd, "cookie descriptor")
        if self.cookie_file is not None:
            return read_password_file(self.cookie_file, "cookie file")
        return None


def host_options(function: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options of :class:`HostFlags` in place of its parameter ``flags``."""
    hints = get_type_hints(function, include_extras=True)
    own = get_type_hints(HostFlags, include_extras=True)
    parameters: list[inspect.Parameter] = []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name != "flags":
            # By keyword, so that those with a default may stand before those without.
            parameters.append(
                parameter.replace(annotation=hints[parameter.name], kind=inspect.Parameter.KEYWORD_ONLY)
            )
            continue
        parameters += [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default,
                annotation=own[field.name],
            )
            for field in fields(HostFlags)
        ]

    @functools.wraps(function)
    def command(**given: Any) -> None:
        flags = HostFlags(**{field.name: given.pop(field.name) for field in fields(HostFlags)})
        function(**given, flags=flags)

    shown: Any = command
    shown.__signature__ = inspect.Signature(parameters)
    shown.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command
