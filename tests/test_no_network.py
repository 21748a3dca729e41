"""That a test which asks for the network fails, in its own process and in those that it starts."""

import socket
import subprocess
import sys

import pytest

#: An address and a name that are reserved for documentation: no machine has them.
BEYOND = "192.0.2.1", "example.invalid"

CONNECT = "import socket; socket.create_connection(({host!r}, 80), timeout=1)"


@pytest.fixture
def refused(network_log):
    """A function: what was refused in this test so far. It is forgotten, so that the test does not fail for it."""

    def read():
        text = network_log.read_text()
        network_log.unlink()
        return text

    return read


@pytest.mark.parametrize("host", BEYOND)
def test_this_process(refused, host):
    with pytest.raises(RuntimeError, match=rf"test_this_process.* asks for the network: .*{host}"):
        socket.create_connection((host, 80), timeout=1)
    assert host in refused()


@pytest.mark.parametrize("call", ["connect", "connect_ex"])
@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, BEYOND[0]), (socket.AF_INET6, "2001:db8::1")])
def test_every_way_to_connect(refused, family, host, call):
    with socket.socket(family) as connection, pytest.raises(RuntimeError, match="asks for the network"):
        getattr(connection, call)((host, 80))
    with socket.socket(family, socket.SOCK_DGRAM) as other, pytest.raises(RuntimeError, match="asks for the network"):
        other.sendto(b"", (host, 80))
    assert len(refused().splitlines()) == 2


def test_a_process_that_a_test_starts(refused):
    done = subprocess.run([sys.executable, "-c", CONNECT.format(host=BEYOND[0])], capture_output=True, text=True)
    assert done.returncode == 1
    assert "test_a_process_that_a_test_starts" in done.stderr.splitlines()[-1]
    assert BEYOND[0] in refused()


def test_a_refusal_that_was_swallowed_is_written_down(refused):
    code = f"try: {CONNECT.format(host=BEYOND[0])}\nexcept Exception: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert "test_a_refusal_that_was_swallowed" in refused()


def test_this_machine_can_be_reached(network_log, tmp_path):
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_INET, ("localhost", 0)),
        (socket.AF_UNIX, str(tmp_path / "socket")),
    ):
        with socket.socket(family) as server, socket.socket(family) as client:
            server.bind(address)
            server.listen()
            client.connect(server.getsockname())
    socket.getaddrinfo(socket.gethostname(), 80)
    assert not network_log.exists()
