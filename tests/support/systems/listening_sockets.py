"""Watches which addresses this process, and all that it starts, listen on."""

import ipaddress
import threading

import psutil


class Listeners:
    """Collects the listening sockets of this process and of all that it started, twice a second."""

    def __init__(self) -> None:
        self.found: set[tuple[str, str, int]] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Listeners":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.5):
            for process in [me, *me.children(recursive=True)]:
                try:
                    name = process.cmdline()[0].partition(".")[0]
                    connections = process.net_connections(kind="inet")
                except (psutil.Error, IndexError):  # gone since
                    continue
                self.found |= {(name, c.laddr.ip, c.laddr.port) for c in connections if not c.raddr}


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback
