# Copyright (c) 2026, the iotops.tunnel authors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filesystems: space, inodes, and whether the kernel has remounted one read-only.

PRIVATE: other collections must not import this.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from ansible_collections.iotops.tunnel.plugins.module_utils._diagnosis.reading import (
    Unavailable,
    read_number,
    read_text,
)

__all__ = ["disk"]

# Filesystems without a block device of their own whose space can still run out.
COUNTED_WITHOUT_DEVICE = {"tmpfs", "overlay", "ubifs", "zfs", "btrfs", "jffs2", "yaffs2", "f2fs"}
# Always full, and read-only by design.
IMAGES = {"squashfs", "erofs", "cramfs", "romfs", "iso9660", "udf"}
# Read-only only if somebody mounted them so. After an I/O error, the kernel remounts filesystems on a medium.
IN_MEMORY = {"tmpfs", "overlay"}
# statvfs would block forever if the server is gone.
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "afs", "ncpfs"}
MOST = 50

_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """A line of /proc/self/mountinfo; see proc(5)."""

    device: str
    path: str
    kind: str
    source: str
    super_options: tuple


def disk() -> dict:
    """Return all filesystems with space of their own: how full they are, and whether fstab wants them read-only."""
    meant_read_only = _meant_read_only()
    filesystems, skipped, seen = [], [], set()
    for mount in _mounts():
        if mount.kind in REMOTE or mount.kind.startswith("fuse."):
            skipped.append(f"{mount.path}: {mount.kind}, which may not respond")
        elif mount.device not in seen and _has_space(mount.kind):
            seen.add(mount.device)
            try:
                filesystems.append(_look(mount, meant_read_only))
            except FileNotFoundError:
                continue  # hidden by another filesystem mounted on a parent folder
            except OSError as error:
                skipped.append(f"{mount.path}: {error.strerror}")
    if len(filesystems) > MOST:
        skipped.append(f"{len(filesystems) - MOST} more filesystems")
    facts: dict = {"filesystems": filesystems[:MOST]}
    if skipped:
        facts["skipped"] = skipped[:MOST]
    return facts


def _mounts() -> list:
    # A later mount on the same path hides the earlier one.
    mounts = {}
    for line in read_text("/proc/self/mountinfo").splitlines():
        own, _separator, rest = line.partition(" - ")
        fields, kind = own.split(" "), rest.split(" ")
        mount = Mount(fields[2], _unescape(fields[4]), kind[0], _unescape(kind[1]), tuple(kind[2].split(",")))
        mounts[mount.path] = mount
    return list(mounts.values())


def _unescape(text: str) -> str:
    """Decode the octal escapes that the kernel writes for spaces, tabs and the like."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 8)), text)


def _has_space(kind: str) -> bool:
    return kind in COUNTED_WITHOUT_DEVICE or kind in IMAGES or kind in _kinds_on_block_devices()


def _kinds_on_block_devices() -> set:
    lines = read_text("/proc/filesystems").splitlines()
    return {line.strip() for line in lines if not line.startswith("nodev")}


def _meant_read_only() -> set:
    """Return the mount points that fstab mounts read-only."""
    try:
        lines = [line.split() for line in read_text("/etc/fstab").splitlines()]
    except Unavailable:
        return set()
    return {fields[1] for fields in lines if len(fields) > 3 and "ro" in fields[3].split(",")}


def _look(mount: Mount, meant_read_only: set) -> dict:
    figures = os.statvfs(mount.path)
    # Like df: blocks reserved for root count neither as free nor as part of the total.
    used = figures.f_blocks - figures.f_bfree
    usable = used + figures.f_bavail
    image = mount.kind in IMAGES
    return {
        "mount": mount.path,
        "type": mount.kind,
        "source": mount.source,
        "size_kib": figures.f_blocks * figures.f_frsize // 1024,
        "free_kib": figures.f_bavail * figures.f_frsize // 1024,
        "used_percent": _percent(used, usable),
        "inodes_used_percent": _percent(figures.f_files - figures.f_ffree, figures.f_files),
        "image": image,
        # The state of the filesystem itself: one of its mounts may be read-only on purpose.
        "read_only": "ro" in mount.super_options,
        "read_only_meant": image or mount.kind in IN_MEMORY or mount.path in meant_read_only,
        "errors": read_number(f"/sys/fs/ext4/{os.path.basename(os.path.realpath(mount.source))}/errors_count") or 0,
    }


def _percent(part: int, whole: int) -> float:
    return round(100 * part / whole, 1) if whole > 0 else 0.0
