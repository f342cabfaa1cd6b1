"""Ports for servers that a test starts by their command, and that cannot choose one and say which."""

from __future__ import annotations

import socket


def free_ports(count: int) -> list[str]:
    """Ports of the loopback that nothing listens at; all different."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports
