# SPDX-License-Identifier: GPL-3.0-or-later
"""``make demo`` on the loopback: it succeeds, and always cleans up."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from peers.process import REPOSITORY, Process, wait_for

STEPS = 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of this test's demo, separate from that of a demo that the developer is running."""
    return tmp_path / "demo"


@pytest.fixture(autouse=True)
def _no_trace(folder: Path) -> Iterator[None]:
    yield
    assert processes_that_name(folder) == []
    assert not (folder / "cleanup.json").exists()


def command(folder: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "demo", "--loopback", "--folder", str(folder), *arguments]


def run_demo(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments), cwd=REPOSITORY, check=False, capture_output=True, text=True, timeout=150
    )


def processes_that_name(path: Path) -> list[str]:
    """Processes with one of the demo's folders in their command line: services, HTTP servers, hub, and sshd."""
    lines = (" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"]))
    return [line for line in lines if str(path) in line]


def runtime_folder(folder: Path) -> Path:
    """The folder for sockets and SSH keys of a running demo."""
    wait_for((folder / "cleanup.json").exists, "the demo has started")
    return Path(json.loads((folder / "cleanup.json").read_text())["runtime"])


def test_it_runs_all_steps_and_leaves_nothing_behind(folder: Path, tmp_path: Path) -> None:
    with Process(command(folder), tmp_path / "output") as demo:
        runtime = runtime_folder(folder)
        assert demo.wait(150) == 0, demo.output()
        output = demo.output()
    assert f"[{STEPS}/{STEPS}]" in output
    assert "Network: loopback" in output
    # Only Ansible's own command opens the tunnels.
    first_of_ansible = next(
        line for line in output.splitlines() if line.startswith(("  $ ansible ", "  $ ansible-playbook"))
    )
    assert first_of_ansible.endswith("/inventory all -m ping")
    assert output.count("ping: pong") == 3
    assert not folder.exists()
    assert not runtime.exists()
    assert processes_that_name(runtime) == []


@pytest.mark.nightly
def test_a_kept_demo_prints_no_secret_and_stop_removes_it(folder: Path) -> None:
    kept = run_demo(folder, "--keep")
    try:
        assert kept.returncode == 0, kept.stdout + kept.stderr
        assert "\x1b" not in kept.stdout
        environment = subprocess.run(
            [sys.executable, "-m", "tunnelproxy", "service", "env", "--state-dir", str(folder / "service")],
            cwd=REPOSITORY,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        secret = environment.split("AWS_SECRET_ACCESS_KEY='")[1].split("'")[0]
        assert secret not in kept.stdout
        assert secret not in (folder / "env").read_text()

        again = run_demo(folder)
        assert again.returncode == 1
        assert "make demo-stop" in again.stdout
        started = json.loads((folder / "cleanup.json").read_text())["started"]
        assert started
        runtime = runtime_folder(folder)
    finally:
        stopped = run_demo(folder, "stop")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert not folder.exists()
    assert not runtime.exists()
    assert [pid for pid, _ in started if psutil.pid_exists(pid)] == []


@pytest.mark.nightly
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_cleans_up_when_interrupted_and_keeps_the_logs(folder: Path, tmp_path: Path, number: int) -> None:
    with Process(command(folder), tmp_path / "output") as demo:
        demo.wait_for_output("all -m ping", 60)
        demo.popen.send_signal(number)
        assert demo.wait(40) == 1
        assert "except the logs" in demo.output()
    assert [path.name for path in folder.iterdir()] == ["logs"]


def test_a_killed_demo_is_removed_later(folder: Path, tmp_path: Path) -> None:
    with Process(command(folder), tmp_path / "output") as demo:
        demo.wait_for_output(r"Start the devices", 60)
        demo.popen.kill()
        demo.wait()
    assert (folder / "cleanup.json").exists()

    assert run_demo(folder, "stop").returncode == 0
    assert not folder.exists()


def test_a_second_demo_in_the_same_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    with Process(command(folder), tmp_path / "output") as first:
        wait_for((folder / "cleanup.json").exists, "the first demo has started")

        second = run_demo(folder)
        assert second.returncode == 1
        assert "Another demo is running" in second.stdout

        first.popen.send_signal(signal.SIGTERM)
        first.wait(40)
