# SPDX-License-Identifier: GPL-3.0-or-later
"""A small Debian system from debootstrap, with systemd as process 1 and sshd as a service."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from .process import REPOSITORY, Process, free_port, wait_for

__all__ = ["Debian", "why_not"]

_PACKAGES = "dbus,openssh-server,python3,python3-venv,systemd-sysv"
_NAMESPACES = ("--mount", "--pid", "--uts", "--ipc", "--cgroup")
_BOOT = Path(__file__).with_name("boot-root.sh")


def why_not(target: str) -> str:
    """Why such a system cannot run here; empty if it can.

    Args:
        target: the Makefile's target, the only one that runs these tests; it sets a variable of that name.
    """
    if not os.environ.get(target.upper().replace("-", "_")):
        return f"takes minutes, and has a separate target: sudo make {target}"
    if os.geteuid() != 0:
        return f"needs root, for debootstrap and namespaces: sudo make {target}"
    if shutil.which("debootstrap") is None:
        return "debootstrap is not installed: apt-get install debootstrap"
    probe = subprocess.run(["unshare", *_NAMESPACES, "--fork", "true"], capture_output=True, text=True, check=False)
    if probe.returncode != 0:
        return f"needs a root that may make namespaces, as outside of containers: {probe.stderr.strip()}"
    if not os.access(_cgroups(), os.W_OK):
        return f"needs a root that may make control groups: {_cgroups()} is read-only"
    return ""


class Debian:
    """Use it as a context manager. Inside, the system runs, and root can log in with a key over SSH on a loopback port.

    The base system is created once, from this machine's mirror, and kept below ``.cache/``; changes of a test are
    discarded.

    Args:
        authorized_key: the private key for root's login, with the public one next to it.
    """

    def __init__(self, authorized_key: Path) -> None:
        self._key = authorized_key
        self.port = free_port()
        self.work = Path(tempfile.mkdtemp(prefix="debian-"))
        self._cgroup = _cgroups() / self.work.name
        self._process: Process | None = None

    def __enter__(self) -> Debian:
        try:
            self._start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    @property
    def host_key_line(self) -> str:
        """The host key for ``known_hosts``, without the name."""
        kind, key, *_ = self.run("cat", "/etc/ssh/ssh_host_ed25519_key.pub").split()
        return f"{kind} {key}\n"

    def run(self, *command: str) -> str:
        """Run a command in the system as root, without SSH; fail if the command fails."""
        done = self.attempt(*command)
        assert done.returncode == 0, f"{command} exited with {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout

    def attempt(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the system as root, without SSH, and accept any exit status."""
        inside = ["nsenter", f"--target={self._pid()}", *_NAMESPACES, "--root", "--wd", *command]
        return subprocess.run(inside, capture_output=True, text=True, check=False, timeout=60)

    def files(self) -> set[str]:
        """All paths except those in memory and those of logs."""
        pruned = " -o ".join(f"-path {path}" for path in ("/proc", "/sys", "/dev", "/run", "/tmp", "/var/log", "/root"))
        return set(self.run("sh", "-c", f"find / \\( {pruned} \\) -prune -o -print").splitlines())

    def remove(self) -> None:
        """Stop the system, and remove it."""
        if self._process is not None:
            # unshare handles no other signal. With it, process 1 of the PID namespace exits, and with that all others.
            self._process.stop(signal.SIGKILL)
        if self._cgroup.exists():
            wait_for(self._remove_cgroups, "the control groups of the system are empty")
        shutil.rmtree(self.work, ignore_errors=True)

    def _start(self) -> None:
        base = _base_system()
        self._admit_root()
        self._cgroup.mkdir()
        # The shell enters the control group, then executes the rest.
        enter = f'echo $$ >"{self._cgroup}/cgroup.procs" && exec "$@"'
        unshare = ["unshare", *_NAMESPACES, "--fork", "--kill-child", "--propagation=private"]
        command: Sequence[str | Path] = ["sh", "-c", enter, "sh", *unshare, "sh", _BOOT, base, self.work]
        self._process = Process(command, self.work / "console.log")
        wait_for(self._first_process, "the system boots", 30)
        wait_for(lambda: self.attempt("systemctl", "is-system-running").returncode == 0, "the system is up", 60)

    def _admit_root(self) -> None:
        """Configure sshd's key and port on top of the base system."""
        files = {
            "etc/ssh/sshd_config.d/test.conf": f"Port {self.port}\nListenAddress 127.0.0.1\n",
            "root/.ssh/authorized_keys": Path(f"{self._key}.pub").read_text(),
        }
        for name, content in files.items():
            file = self.work / "upper" / name
            file.parent.mkdir(parents=True)
            file.write_text(content)

    def _pid(self) -> int:
        pid = self._first_process()
        assert pid, "the system does not run"
        return pid

    def _first_process(self) -> int:
        """The process with number 1 inside; 0 until that is systemd, because its root is this machine's before that."""
        assert self._process is not None
        assert self._process.popen.poll() is None, f"the system stopped: {self._process.output()[-2000:]}"
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        children = path.read_text().split()
        booted = children and Path(f"/proc/{children[0]}/comm").read_text() == "systemd\n"
        return int(children[0]) if booted else 0

    def _remove_cgroups(self) -> bool:
        folders = sorted((path for path in self._cgroup.rglob("*") if path.is_dir()), reverse=True)
        try:
            for folder in (*folders, self._cgroup):
                folder.rmdir()
        except OSError:
            return False
        return True


def _cgroups() -> Path:
    """The hierarchy of control groups that systemd uses."""
    top = Path("/sys/fs/cgroup")
    return top if (top / "cgroup.controllers").exists() else top / "systemd"


def _base_system() -> Path:
    """Create the base system, or return the existing one."""
    release, mirror = _release_and_mirror()
    base = REPOSITORY / ".cache" / f"debian-{release}"
    if not base.exists():
        partial = base.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        base.parent.mkdir(exist_ok=True)
        # In a mount namespace, so that its mounts always disappear.
        command = [
            "unshare",
            "--mount",
            "debootstrap",
            "--variant=minbase",
            f"--include={_PACKAGES}",
            release,
            str(partial),
            mirror,
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command} failed: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        # It cannot resolve names, so it has no package index.
        (partial / "etc/resolv.conf").write_text("")
        (partial / "etc/hostname").write_text("device\n")
        (partial / "etc/hosts").write_text("127.0.0.1 localhost device\n")
        partial.rename(base)
    return base


def _release_and_mirror() -> tuple[str, str]:
    """The release of this machine, and the mirror that it gets packages from."""
    names = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    release = names["VERSION_CODENAME"].strip('"')
    wanted = ["apt-get", "indextargets", "--format", "$(RELEASE) $(SITE)", "Created-By: Packages"]
    for line in subprocess.run(wanted, capture_output=True, text=True, check=True).stdout.splitlines():
        name, mirror = line.split()
        if name == release:
            return release, mirror
    raise AssertionError(f"apt knows no mirror of {release}: see /etc/apt/sources.list")
