"""Python imports this by itself where its folder is on PYTHONPATH: no socket leaves the machine.

An audit hook can't be taken out again. It sees Python's own sockets, and not those of libraries in
other languages; of these, gloo connects processes of this machine.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from typing import Any

ONLINE = "PEFT_WHISPER_TESTS_ONLINE"  # set while the demo's assets are fetched


def hook(event: str, given: tuple[Any, ...]) -> None:
    """Refuse what would reach another machine, as if it had no network."""
    if not event.startswith("socket.") or ONLINE in os.environ:
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        address = given[1]
        if isinstance(address, tuple) and not _here(address[0]):
            raise OSError(errno.ENETUNREACH, "tests use no network", str(address[0]))
    elif event in ("socket.getaddrinfo", "socket.gethostbyname") and not _here(given[0]):
        raise socket.gaierror(socket.EAI_AGAIN, f"tests use no network, not even for {given[0]}")


def _here(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


sys.addaudithook(hook)
