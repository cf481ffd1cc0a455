"""TCP ports that nobody else is given between choosing one and listening on it."""

import socket
from contextlib import ExitStack

from slime_core.errors import ConfigError


class PortLease:
    """Free ports of one address, held until ``close``; belongs to one process.

    Each port is bound but not listened on, with SO_REUSEADDR. Linux then hands the port to no
    other automatic bind and to no outgoing connection, while a server that binds it by number
    with SO_REUSEADDR (uvicorn, the router and torch's TCPStore do) may listen.
    """

    def __init__(self, count: int, host: str = "127.0.0.1") -> None:
        with ExitStack() as held:
            self._sockets = [held.enter_context(_hold(host)) for _ in range(count)]
            held.pop_all()
        self.ports = tuple(int(held.getsockname()[1]) for held in self._sockets)

    def close(self) -> None:
        """Give the ports back."""
        for held in self._sockets:
            held.close()

    def __enter__(self) -> "PortLease":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def require_free(port: int, flag: str, host: str = "127.0.0.1") -> None:
    """Refuse a port that somebody listens on; ``flag`` asked for it."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"{flag} {port}: the port cannot be used ({error.strerror}); give another one, or "
            "leave the flag out and a free one is found"
        ) from error


def _hold(host: str) -> socket.socket:
    held = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        held.bind((host, 0))
    except OSError:
        held.close()
        raise
    return held
