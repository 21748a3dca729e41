"""Refuses every connection and every look-up of a name beyond this machine, in the process that imports this module.

`tests/conftest.py` runs it, and puts its folder on PYTHONPATH: Python imports a module of this name whenever it starts,
so the processes that tests start are covered too. The audit hook sees all calls of Python's `socket` module, whichever
library makes them. Sockets that a library opens without Python are not seen.
"""

import ipaddress
import os
import socket
import sys

LOOKUPS = ("socket.getaddrinfo", "socket.gethostbyname")
CONNECTIONS = ("socket.connect", "socket.sendto", "socket.sendmsg")


def is_here(host) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    if host in (None, "", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.split("%")[0])  # a scope may follow "%"
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def refuse(event: str, arguments: tuple) -> None:
    if event in LOOKUPS:
        host = arguments[0]
    elif event in CONNECTIONS and arguments[0].family in (socket.AF_INET, socket.AF_INET6) and arguments[1]:
        host = arguments[1][0]
    else:
        return
    if is_here(host):
        return
    test = os.environ.get("PYTEST_CURRENT_TEST", "the collection of tests")
    message = f"{test} asks for the network: {event} of {host!r}; tests may reach this machine only"
    if log := os.environ.get("SALVAGE_NETWORK_LOG"):  # the test fails by this file where a library catches the error
        with open(log, "a") as file:  # noqa: PTH123 -- pathlib takes long to import, and this runs in every process
            file.write(message + "\n")
    raise RuntimeError(message)  # no OSError, because libraries take that for a network that is down


sys.addaudithook(refuse)
