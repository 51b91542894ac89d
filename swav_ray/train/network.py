"""Which network the workers of a run talk over."""

from __future__ import annotations

import fcntl
import os
import socket
import struct

GLOO = "GLOO_SOCKET_IFNAME"
_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


def talk_over(address: str) -> None:
    """Let gloo use the interface with ``address`` (that by which Ray knows this node), unless the user has named one.

    By itself gloo looks up the host's name, and takes the loopback where that leads elsewhere, as Debian's 127.0.1.1 does:
    workers of several hosts then do not find each other.
    """
    if not os.environ.get(GLOO):
        name = interface_of(address)
        if name:
            os.environ[GLOO] = name


def interface_of(address: str) -> str:
    """The interface of this host that has an IPv4 address; empty if there is none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(any_socket, _SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has none
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""
