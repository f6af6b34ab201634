# SPDX-License-Identifier: GPL-3.0-or-later
"""Devices with ailments: SSH servers in mount and UTS namespaces, where a filesystem is full or a certificate old.

What is wrong there is really so for whoever looks from inside, and nowhere else. It needs root.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from .certificate import make_certificate

__all__ = ["AGENT_CERTIFICATE", "ailing"]

AGENT_CERTIFICATE = "/etc/tunnelproxy-agent/broker-cert.pem"


def ailing(
    thing: str,
    folder: Path,
    *,
    filled_percent: int = 0,
    read_only: bool = False,
    certificate_days: float | None = None,
    reboot_due: bool = False,
    name_servers: bool = True,
) -> list[str]:
    """A command that runs another one on such a device; for C(inside) of the fleet.

    Args:
        thing: also the host's name.
        folder: for what lies beside.
        filled_percent: how full a filesystem at /srv/data is; 0 for no such filesystem.
        read_only: whether there is an ext4 at /srv/media that is mounted read-only.
        certificate_days: how long the device's certificate lasts; None for no certificate.
        reboot_due: whether its packages want it to be started anew.
        name_servers: whether /etc/resolv.conf names one.
    """
    # Whatever is written below /etc and /run goes into memory, and away with the last process.
    steps = [
        f"hostname {shlex.quote(thing)}",
        "mount -t tmpfs -o mode=755 tmpfs /mnt",
        "mkdir -p /mnt/up /mnt/work",
        "mount -t overlay -o lowerdir=/etc,upperdir=/mnt/up,workdir=/mnt/work overlay /etc",
        "mount -t tmpfs -o mode=755 tmpfs /run",
        "mkdir /run/sshd",
        "mount -t tmpfs -o size=256k,mode=755 tmpfs /srv",
        ": >/etc/resolv.conf",
    ]
    if name_servers:
        steps.append("echo nameserver 192.0.2.53 >/etc/resolv.conf")
    if filled_percent:
        kib = 64 * 1024
        steps += [
            "mkdir /srv/data",
            f"mount -t tmpfs -o size={kib}k tmpfs /srv/data",
            f"dd if=/dev/zero of=/srv/data/samples bs=1k count={kib * filled_percent // 100} status=none",
        ]
    if read_only:
        image = shlex.quote(str(folder / f"{thing}.img"))
        steps += [
            f"dd if=/dev/zero of={image} bs=1M count=16 status=none",
            f"mke2fs -q -t ext4 {image}",
            "mkdir /srv/media",
            f"mount -o loop,ro {image} /srv/media",
        ]
    if certificate_days is not None:
        certificate = make_certificate(folder / f"{thing}.pem", thing, certificate_days)
        steps += ["mkdir /etc/tunnelproxy-agent", f"cp {shlex.quote(str(certificate))} {AGENT_CERTIFICATE}"]
    if reboot_due:
        steps += ["touch /run/reboot-required", "echo linux-image-amd64 >/run/reboot-required.pkgs"]
    script = " && ".join([*steps, 'exec "$@"'])
    return ["unshare", "--mount", "--uts", "--propagation=private", "sh", "-c", script, "sh"]
