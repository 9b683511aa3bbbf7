"""Refuses connections beyond this machine while tests run, so that a hidden download fails at once instead of hanging.

Python imports this file by itself in every interpreter that has its folder on PYTHONPATH: pytest, the command line it
starts, notebook kernels. Without SPEECHKIT_BLOCK_NETWORK=1 it does nothing.
"""

import ipaddress
import os
import sys

LOCAL_NAMES = {"", "localhost", "ip6-localhost"}


def _is_local(host: object) -> bool:
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else str(host or "")
    if name in LOCAL_NAMES:
        return True
    try:
        address = ipaddress.ip_address(name.split("%")[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse(event: str, args: tuple[object, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = args[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(args[1], tuple):
        host = args[1][0]
    else:
        return
    if not _is_local(host):
        raise OSError(f"network blocked in tests: {event} to {host!r}; tests use the embedded models and clips only")


if os.environ.get("SPEECHKIT_BLOCK_NETWORK") == "1":
    sys.addaudithook(_refuse)
