"""What `listen` is asked for, understood. Nothing is looked up and nothing is opened here."""

from __future__ import annotations

from .errors import AddressError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

__all__ = ["Address", "identity"]


class Address:
    """What `listen` was asked for, understood: `kind` is "tcp", "udp" or "unix"; `host` is the path for "unix"."""

    kind: str
    host: str
    port: int

    __slots__ = ("host", "kind", "port")

    def __init__(self, kind: str, host: str, port: int = 0) -> None:
        self.kind, self.host, self.port = kind, host, port

    @classmethod
    def parse(cls, address: Any) -> Address:
        """Understand "host:port", (host, port), "[::1]:8000", ":8000", "unix:/path", "udp:host:port", "tcp:...".

        Raises AddressError for anything else. No name is looked up.
        """
        if isinstance(address, tuple):
            return cls._of_pair(*address)
        if not isinstance(address, str):
            raise AddressError(f"listen({address!r}): want 'host:port', (host, port), 'unix:/path' or 'udp:host:port'")
        kind, colon, rest = address.partition(":")
        if kind == "unix" and colon:
            if not rest or "\0" in rest:
                raise AddressError(f"listen({address!r}): the path is missing or has a NUL in it")
            return cls("unix", rest)
        if kind in ("udp", "tcp") and ":" in rest:
            return cls._checked(kind, *_split_host(rest), address)
        if not colon:
            raise AddressError(f"listen({address!r}): the host is missing; ':{address}' for all of this machine's")
        return cls._checked("tcp", *_split_host(address), address)

    @classmethod
    def _of_pair(cls, *pair: Any) -> Address:
        if [type(part) for part in pair] != [str, int]:
            raise AddressError(f"listen({pair!r}): want (host, port)")
        return cls._checked("tcp", pair[0], str(pair[1]), pair)

    @classmethod
    def _checked(cls, kind: str, host: str, port: str, address: object) -> Address:
        if not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
            raise AddressError(f"listen({address!r}): the port is a number from 0 to 65535")
        if "\0" in host:
            raise AddressError(f"listen({address!r}): a host has no NUL in it")
        return cls(kind, host, int(port))

    def __str__(self) -> str:
        if self.kind == "unix":
            return f"unix:{self.host}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"udp:{host}:{self.port}" if self.kind == "udp" else f"{host}:{self.port}"


def identity(address: str, name: str | None) -> tuple[str, str | None]:
    """What makes a listener the same one when it is asked for again: a name tells apart those with port 0 only."""
    return address, (name if address.endswith(":0") else None)


def _split_host(text: str) -> tuple[str, str]:
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return host, port
