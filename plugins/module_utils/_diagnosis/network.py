# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The device's network: interfaces, routes, name servers, listening sockets, and what it can reach.

All of this comes from the kernel, through /proc, /sys and netlink, because not all devices have C(ip) and C(ss).

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import functools
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable

from ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis.reading import (
    Unavailable,
    read_number,
    read_text,
)

__all__ = ["network"]

MOST = 60
TRY_SECONDS = 8

# <linux/netlink.h>, <linux/rtnetlink.h>, <linux/if_addr.h>
RTM_GETADDR, NLM_F_REQUEST_DUMP = 22, 0x301
NLMSG_ERROR, NLMSG_DONE = 2, 3
IFA_ADDRESS, IFA_LOCAL = 1, 2

TCP_LISTEN, UDP_UNCONNECTED = "0A", "07"
RTF_UP, RTF_REJECT = 0x1, 0x200
DEFAULT_V6 = "0" * 32


def network(names: list, endpoints: list) -> dict:
    """Return interfaces, default routes, name servers, listening sockets, and the results of the requested attempts.

    Args:
        names: host names to resolve on the device.
        endpoints: C(HOST:PORT) to which the device opens a TCP connection.
    """
    skipped: list = []
    attempts = _Attempts()
    for name in names:
        attempts.start("resolve", name, functools.partial(_resolve, name))
    for endpoint in endpoints:
        attempts.start("connect", endpoint, functools.partial(_connect, endpoint))
    listening = _listening(skipped)
    if len(listening) > MOST:
        skipped.append(f"{len(listening) - MOST} more listening sockets")
    facts = {
        "interfaces": _interfaces(skipped),
        "default_routes": _default_routes(),
        **_name_servers(),
        "listening": listening[:MOST],
        "tries": attempts.results(),
    }
    if skipped:
        facts["skipped"] = skipped
    return facts


def _interfaces(skipped: list) -> list:
    try:
        addresses = _addresses()
        names = sorted(os.listdir("/sys/class/net"))
    except OSError as error:
        skipped.append(f"interfaces: {error.strerror}")
        return []
    if len(names) > MOST:
        skipped.append(f"{len(names) - MOST} more interfaces")
    found = []
    for name in names[:MOST]:
        folder = f"/sys/class/net/{name}"
        try:
            state = read_text(f"{folder}/operstate", 64).strip()
        except Unavailable:
            continue  # bonding_masters is not an interface
        found.append(
            {
                "name": name,
                "state": state,
                "mtu": read_number(f"{folder}/mtu"),
                "addresses": addresses.get(name, []),
                "receive_errors": read_number(f"{folder}/statistics/rx_errors"),
                "send_errors": read_number(f"{folder}/statistics/tx_errors"),
            }
        )
    return found


def _addresses() -> dict:
    """Ask netlink for the addresses of all interfaces; see rtnetlink(7)."""
    found: dict = {}
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as netlink:
        netlink.settimeout(TRY_SECONDS)
        header = struct.pack("=IHHII", 24, RTM_GETADDR, NLM_F_REQUEST_DUMP, 1, 0)
        netlink.sendall(header + struct.pack("=BBBBI", socket.AF_UNSPEC, 0, 0, 0, 0))
        while True:
            data = netlink.recv(65536)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind in {NLMSG_DONE, NLMSG_ERROR}:
                    return found
                name, address = _address(data[16:length])
                found.setdefault(name, []).append(address)
                data = data[(length + 3) & ~3 :]


def _address(message: bytes) -> tuple:
    """Return the interface, and the address with its prefix, in a netlink message."""
    family, prefix, _flags, _scope, index = struct.unpack_from("=BBBBI", message)
    attributes, rest = {}, message[8:]
    while len(rest) >= 4:
        length, kind = struct.unpack_from("=HH", rest)
        attributes[kind] = rest[4:length]
        rest = rest[(max(length, 4) + 3) & ~3 :]
    # On a point-to-point link, IFA_ADDRESS is that of the other end.
    raw = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS, b"")
    try:
        name = socket.if_indextoname(index)
    except OSError:
        name = f"interface {index}"
    return name, f"{socket.inet_ntop(family, raw)}/{prefix}" if raw else ""


def _default_routes() -> list:
    routes = []
    for fields in _table("/proc/net/route"):
        interface, destination, gateway, flags, mask = fields[0], fields[1], fields[2], int(fields[3], 16), fields[7]
        if int(destination, 16) == 0 and int(mask, 16) == 0 and flags & RTF_UP and not flags & RTF_REJECT:
            routes.append(
                {"family": "IPv4", "gateway": _host(gateway), "interface": interface, "metric": int(fields[6])}
            )
    for fields in _table("/proc/net/ipv6_route", heading=False):
        flags = int(fields[8], 16)
        if fields[0] == DEFAULT_V6 and fields[1] == "00" and flags & RTF_UP and not flags & RTF_REJECT:
            gateway = socket.inet_ntop(socket.AF_INET6, bytes.fromhex(fields[4]))
            routes.append({"family": "IPv6", "gateway": gateway, "interface": fields[9], "metric": int(fields[5], 16)})
    return routes[:MOST]


def _table(path: str, heading: bool = True) -> list:
    try:
        lines = read_text(path).splitlines()
    except Unavailable:
        return []
    return [line.split() for line in lines[1 if heading else 0 :]]


def _host(text: str) -> str:
    """Decode an address of /proc/net: 32-bit words in hexadecimal, each in the machine's byte order."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    raw = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    return socket.inet_ntop(socket.AF_INET6 if len(raw) == 16 else socket.AF_INET, raw)


def _name_servers() -> dict:
    servers, search = [], []
    try:
        lines = read_text("/etc/resolv.conf").splitlines()
    except Unavailable as error:
        return {"name_servers": [], "search": [], "name_servers_error": str(error)}
    for words in map(str.split, lines):
        if len(words) > 1 and words[0] == "nameserver":
            servers.append(words[1])
        elif len(words) > 1 and words[0] in {"search", "domain"}:
            search = words[1:]
    return {"name_servers": servers, "search": search}


def _listening(skipped: list) -> list:
    found = []
    for protocol, state in (
        ("tcp", TCP_LISTEN),
        ("tcp6", TCP_LISTEN),
        ("udp", UDP_UNCONNECTED),
        ("udp6", UDP_UNCONNECTED),
    ):
        for fields in _table(f"/proc/net/{protocol}"):
            if fields[3] == state:
                host, _colon, port = fields[1].partition(":")
                found.append((int(port, 16), protocol[:3], _host(host), fields[9]))
    owners = _owners({inode for _port, _protocol, _address, inode in found})
    if found and len(owners) < len({inode for *_rest, inode in found}) and os.geteuid() != 0:
        skipped.append("the processes of other users' listening sockets; use become")
    return [
        {"protocol": protocol, "address": address, "port": port, "process": owners.get(inode, "")}
        for port, protocol, address, inode in sorted(found)
    ]


def _owners(inodes: set) -> dict:
    """Return names of processes by the inode of their sockets. Not command lines, which may contain secrets."""
    owners: dict = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            descriptors = os.listdir(f"/proc/{pid}/fd")
        except OSError:
            continue  # another user's, or it has exited
        for descriptor in descriptors:
            try:
                target = os.readlink(f"/proc/{pid}/fd/{descriptor}")
            except OSError:
                continue
            inode = target[8:-1] if target.startswith("socket:[") else ""
            if inode in inodes and inode not in owners:
                owners[inode] = _name_of(pid)
    return owners


def _name_of(pid: str) -> str:
    try:
        return read_text(f"/proc/{pid}/comm", 64).rstrip("\n")
    except Unavailable:
        return ""


class _Attempts:
    """Concurrent attempts, each in its own thread. Results are available after TRY_SECONDS at the latest."""

    def __init__(self) -> None:
        self._rows: list = []
        self._threads: list = []

    def start(self, kind: str, subject: str, attempt: Callable[[], str]) -> None:
        """Start an attempt. C(attempt) returns the details, or raises OSError or ValueError."""
        row = {"kind": kind, "subject": subject, "ok": False, "detail": f"no answer within {TRY_SECONDS} s"}

        def run() -> None:
            started = time.monotonic()
            try:
                detail, ok = attempt(), True
            except (OSError, ValueError) as error:
                detail, ok = getattr(error, "strerror", None) or str(error), False
            row.update(ok=ok, detail=detail, ms=round((time.monotonic() - started) * 1000))

        # A resolver may block for minutes. A daemon thread does not delay the exit of the process.
        thread = threading.Thread(target=run, daemon=True)
        self._rows.append(row)
        self._threads.append(thread)
        thread.start()

    def results(self) -> list:
        deadline = time.monotonic() + TRY_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [dict(row) for row in self._rows]


def _resolve(name: str) -> str:
    answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return ", ".join(dict.fromkeys(str(answer[4][0]) for answer in answers))


def _connect(endpoint: str) -> str:
    host, _colon, port = endpoint.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("not HOST:PORT")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=TRY_SECONDS) as connection:
        return f"connected to {connection.getpeername()[0]}"
