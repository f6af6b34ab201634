#!/bin/sh
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Boot systemd as process 1 of a system that lies in a folder: boot-root.sh BASE WORK
# BASE stays as it is: WORK/upper lies over it, and takes what the system writes. To be run in mount, PID, UTS, IPC and cgroup
# namespaces of its own, which end with the last process, and the mounts with them. The network is the host's.
set -eu
base=$1
work=$2

mkdir -p "$work/upper" "$work/work" "$work/root"
mount -t overlay -o "lowerdir=$base,upperdir=$work/upper,workdir=$work/work" overlay "$work/root"
cd "$work/root"

# What belongs to the kernel that all share stays out of reach: /proc/sys, /sys, /dev.
mount -t proc proc proc
for path in sys sysrq-trigger; do
  [ -e "proc/$path" ] || continue
  mount --bind "proc/$path" "proc/$path"
  mount -o remount,bind,ro "proc/$path"
done
mount -t sysfs -o ro sysfs sys
mount -t tmpfs -o mode=755 tmpfs dev
for device in null zero full random urandom tty; do
  : >"dev/$device"
  mount --bind "/dev/$device" "dev/$device"
done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp

# The cgroup namespace shows the group that this process was put in as the whole hierarchy.
if [ "$(stat --file-system --format %T /sys/fs/cgroup)" = cgroup2fs ]; then
  mount -t cgroup2 cgroup2 sys/fs/cgroup
else
  mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
  mkdir sys/fs/cgroup/systemd
  mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
fi

mkdir -p host
pivot_root . host
umount -l /host
exec env -i container=test PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --log-target=console --show-status=false
