"""Ports of this machine, and servers on them."""

import socket
import urllib.request


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, all different."""
    taken = [socket.socket() for _ in range(count)]
    for one in taken:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


def free_port() -> int:
    return free_ports(1)[0]


def answers(url: str) -> bool:
    """There is a server, and it answers."""
    try:
        urllib.request.urlopen(url, timeout=5)
    except OSError:
        return False
    return True
