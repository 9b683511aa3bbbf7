"""The network guard refuses what leaves the machine, lets loopback through, and is off unless asked for."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).parent
REFUSED = {
    "a name": "import socket; socket.getaddrinfo('example.org', 443)",
    "an address": "import socket; socket.create_connection(('192.0.2.1', 443), timeout=5)",
    "an IPv6 address": "import socket; socket.socket(socket.AF_INET6).connect(('2001:db8::1', 443))",
    "a datagram": "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 53))",
    "a subprocess": "import subprocess, sys; subprocess.run([sys.executable, '-c', "
    "'import socket; socket.getaddrinfo(\"example.org\", 443)'], check=True)",
}
LOOPBACK = """
import socket
server = socket.create_server(("127.0.0.1", 0))
socket.create_connection(("localhost", server.getsockname()[1]), timeout=5)
left, right = socket.socketpair()
print("connected")
"""


def _python(code: str, block: str = "1") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(PLUGINS), "SPEECHKIT_BLOCK_NETWORK": block}
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("code", REFUSED.values(), ids=REFUSED.keys())
def test_guard_refuses(code: str) -> None:
    done = _python(code)
    assert done.returncode != 0
    assert "network blocked in tests" in done.stderr


def test_guard_lets_loopback_and_socket_pairs_through() -> None:
    done = _python(LOOPBACK)
    assert (done.returncode, done.stdout) == (0, "connected\n"), done.stderr


def test_guard_does_nothing_unless_asked_for() -> None:
    probe = "import sys; sys.audit('socket.getaddrinfo', 'example.org', 443, 0, 0, 0); print('quiet')"
    assert _python(probe, block="").stdout == "quiet\n"
