"""Two hosts on one machine: network namespaces joined by a cable (a veth pair), each with a host name of its own."""

import ctypes
import os
import socket
import subprocess
from dataclasses import dataclass

CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000


@dataclass(frozen=True)
class TwoHosts:
    """Their names are also those of their ends of the cable."""

    names: tuple[str, str]

    ADDRESSES = ("10.253.77.1", "10.253.77.2")

    def connect(self) -> None:
        """Raises CalledProcessError where the machine does not allow it."""
        for name in self.names:
            run("ip", "netns", "add", name)
        run("ip", "link", "add", self.names[0], "type", "veth", "peer", "name", self.names[1])
        for name, address in zip(self.names, self.ADDRESSES, strict=True):
            run("ip", "link", "set", name, "netns", name)
            run("ip", "-n", name, "address", "add", f"{address}/24", "dev", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
            run("ip", "-n", name, "link", "set", name, "up")

    def cut(self) -> None:
        run("ip", "-n", self.names[1], "link", "set", self.names[1], "down")

    def mend(self) -> None:
        run("ip", "-n", self.names[1], "link", "set", self.names[1], "up")

    def remove(self) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)  # takes its end of the cable with it


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def move_to_host(name: str) -> None:
    """Moves this process, which has one thread, to a host of TwoHosts."""
    libc = ctypes.CDLL(None, use_errno=True)
    namespace = os.open(f"/var/run/netns/{name}", os.O_RDONLY)
    for failed in (libc.setns(namespace, CLONE_NEWNET), libc.unshare(CLONE_NEWUTS)):
        if failed:
            raise OSError(ctypes.get_errno(), "can't move to another host")
    os.close(namespace)
    socket.sethostname(name)
