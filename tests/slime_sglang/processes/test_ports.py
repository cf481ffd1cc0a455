import socket

import pytest
from slime_core.errors import ConfigError
from slime_sglang.processes.ports import PortLease, require_free


def test_a_leased_port_is_handed_to_nobody_else() -> None:
    with PortLease(3) as lease, PortLease(300) as others:
        assert len(set(lease.ports)) == 3
        assert not set(lease.ports) & set(others.ports)


def test_a_server_can_listen_on_its_leased_port() -> None:
    with PortLease(1) as lease, socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", lease.ports[0]))
        server.listen()
        with socket.create_connection(("127.0.0.1", lease.ports[0]), timeout=5):
            pass


def test_a_closed_lease_gives_its_ports_back() -> None:
    lease = PortLease(1)
    lease.close()
    with socket.socket() as anyone:
        anyone.bind(("127.0.0.1", lease.ports[0]))


def test_a_port_that_is_taken_is_named_with_its_flag():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--sglang-router-port {port}: .* in use"):
            require_free(port, "--sglang-router-port")
    require_free(port, "--sglang-router-port")
