"""Hosts on this machine: network namespaces with addresses of their own on a bridge, or plain processes where there are none.

Namespaces take root and Linux's `ip` and `unshare`; what was made of them is always undone.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

# of the range for tests between networks, https://www.rfc-editor.org/rfc/rfc2544
_NETWORK = "198.18.7"


class Host(NamedTuple):
    """A host: its address, and what a command is started with to run there."""

    address: str
    within: tuple[str, ...] = ()


class Hosts(NamedTuple):
    """Where the launcher is, and the others.

    Attributes:
        launcher: this machine, as the others reach it.
        others: with the pools.
        apart: whether each has a network of its own.
    """

    launcher: Host
    others: list[Host]
    apart: bool


@contextmanager
def hosts(count: int) -> Iterator[Hosts]:
    """So many hosts while the context lasts."""
    try:
        _make(count)
    except (OSError, subprocess.CalledProcessError):
        _undo(count)
        yield Hosts(Host("localhost"), [Host("localhost")] * count, apart=False)
        return
    try:
        address = f"{_NETWORK}.254"
        # Beam names a job server by the name of its host
        named = ("unshare", "--uts", "sh", "-c", f'hostname {address} && exec "$@"', "sh")
        others = [
            Host(f"{_NETWORK}.{number}", ("ip", "netns", "exec", _name(number))) for number in range(1, count + 1)
        ]
        yield Hosts(Host(address, named), others, apart=True)
    finally:
        _undo(count)


def _name(number: int) -> str:
    # interfaces have names of at most 15 letters
    return f"pp{os.getpid()}h{number}"


def _make(count: int) -> None:
    bridge = _name(0)
    _ip(f"link add {bridge} type bridge")
    _ip(f"addr add {_NETWORK}.254/24 dev {bridge}")
    _ip(f"link set {bridge} up")
    for number in range(1, count + 1):
        name = _name(number)
        _ip(f"netns add {name}")
        _ip(f"link add {name} type veth peer name eth0 netns {name}")
        _ip(f"link set {name} master {bridge} up")
        _ip(f"-n {name} addr add {_NETWORK}.{number}/24 dev eth0")
        _ip(f"-n {name} link set eth0 up")
        _ip(f"-n {name} link set lo up")
    subprocess.run(["unshare", "--uts", "sh", "-c", "hostname somewhere"], check=True, capture_output=True)


def _undo(count: int) -> None:
    for number in range(1, count + 1):
        # with it goes its interface; processes that are left there would keep both
        _ip(f"netns del {_name(number)}", check=False)
        _ip(f"link del {_name(number)}", check=False)
    _ip(f"link del {_name(0)}", check=False)


def _ip(arguments: str, check: bool = True) -> None:
    try:
        subprocess.run(["ip", *arguments.split()], check=check, capture_output=True)
    except OSError:
        if check:
            raise
