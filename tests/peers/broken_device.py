# SPDX-License-Identifier: GPL-3.0-or-later
"""Broken devices: SSH servers in mount and UTS namespaces, where a filesystem is full or a certificate has expired.

The faults are real for users who log in, and do not exist outside. Needs root.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from .certificate import make_certificate

__all__ = ["AGENT_CERTIFICATE", "broken_device"]

AGENT_CERTIFICATE = "/etc/tunnelproxy-agent/broker-cert.pem"


def broken_device(
    thing: str,
    folder: Path,
    *,
    filled_percent: int = 0,
    read_only: bool = False,
    certificate_days: float | None = None,
    reboot_due: bool = False,
    name_servers: bool = True,
) -> list[str]:
    """The start of a command line that runs the rest on such a device; for ``enter`` of :class:`peers.fleet.Fleet`.

    Args:
        thing: the thing, and the name of the host.
        folder: for the image and the certificate.
        filled_percent: how full the filesystem at /srv/data is; 0 for none.
        read_only: whether an ext4 filesystem is mounted read-only at /srv/media.
        certificate_days: in how many days the certificate of the agent expires; None for no certificate.
        reboot_due: whether its packages need a reboot.
        name_servers: whether /etc/resolv.conf has a name server.
    """
    # Changes in /etc and /run stay in memory, until the last process exits.
    steps = [
        # Other tests may have filled a filesystem of theirs.
        """awk '$5 ~ "^/tmp/" {print $5}' /proc/self/mountinfo | tac | xargs -r -n 1 umount -l""",
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
