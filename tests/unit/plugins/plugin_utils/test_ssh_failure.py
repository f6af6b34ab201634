# SPDX-License-Identifier: GPL-3.0-or-later
"""What the operator reads when ssh fails."""

from __future__ import annotations

import importlib

import pytest

TARGET = ("thing", "SSH1", "aws:123456789012:eu-central-1", "thing.123456789012.eu-central-1")
CLOSED = "Connection closed by UNKNOWN port 65535"
REFUSED = "user@thing: Permission denied (publickey)."


@pytest.fixture
def ssh_failure(monkeypatch, tmp_path):
    monkeypatch.setenv("IOTOPS_TUNNEL_DIR", str(tmp_path / "hub"))
    return importlib.import_module("ansible_collections.iotops.tunnel.plugins.plugin_utils._ssh_failure")


@pytest.fixture
def explain(ssh_failure):
    """For what a run of ssh has left, through a hub that is no more."""

    def explain(log=None, *, stderr="", complaint=None, still_up=False, how="explain_ssh", **config):
        run = ssh_failure.SshOutput(None if log is None else f"{log}\r\n".lstrip(), stderr, complaint)
        inquiry = ssh_failure.Probes(lambda: still_up, lambda: {"loglevel": "INFO", **config}, 1)
        return getattr(ssh_failure, how)(run, ssh_failure.Target(*TARGET), inquiry)

    return explain


def test_the_connectors_line_is_all_that_is_said(explain):
    complaint = "Warning: something\r\niotops.tunnel: the device thing refused SSH1: look there\r\n"
    assert explain("proxy dialer did not", complaint=complaint) == "the device thing refused SSH1: look there"
    assert explain(complaint=complaint, how="explain_transfer") == "the device thing refused SSH1: look there"


def test_a_connector_that_crashed_is_no_silent_device(explain):
    log = "mm_receive_fd: recvmsg: expected received 1 got 0\r\nproxy dialer did not pass back a connection"
    assert explain(log, complaint="Traceback …\nKeyError: 'x'\n") == (
        "thing cannot be reached: ssh's proxy command failed: KeyError: 'x'"
    )


@pytest.mark.parametrize(
    ("stderr", "words"),
    [
        (
            "Cannot specify -J with ProxyCommand\r\n",
            "-J with ProxyCommand), and nothing was run on thing: remove -J from",
        ),
        ("unknown option -- -\nusage: ssh [-46]\n           [-b x]\n", "thing: unknown option -- -"),
        ("command-line: line 0: Bad configuration option: foo\r\n", "thing: command-line: line 0: Bad configuration"),
        ("Bad local forwarding specification 'x'\n", "thing: Bad local forwarding specification 'x'"),
        ("wrapper: ssh: not found\n", "thing: wrapper: ssh: not found"),
    ],
)
def test_an_ssh_that_did_not_open_its_log_is_quoted(explain, stderr, words):
    said = explain(stderr=stderr)
    assert ", and nothing was run on thing: " in said
    assert words in said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("ControlPath too long ('/x' >= 108 bytes)", "to a shorter path"),
        ("Cannot execute command-line and remote command.", "RemoteCommand=none"),
        ("Can't open user config file /x: No such file or directory", "thing: Can't open user config file /x: No such"),
        ("/etc/ssh_config line 3: Bad SSH2 cipher spec 'x'.", "Bad SSH2 cipher spec"),
        (REFUSED, "does not let this user"),
        ("exec request failed on channel 0", "thing: exec request failed"),
        ("Received disconnect from UNKNOWN port 65535:2: Too many authentication failures", "IdentitiesOnly=yes"),
        (f'Load key "/x": invalid format\r\n{REFUSED}', 'Load key "/x": invalid format; user@thing: Permission'),
    ],
)
def test_what_ssh_says_before_a_command_ran_is_quoted(explain, line, words):
    log = f"Warning: Permanently added 'x'\r\ndebug1: x\r\n{line}"
    said = explain(log, stderr="Host key verification failed.\r\n", complaint="")
    assert ", and nothing was run on thing: " in said
    assert words in said
    assert "broke off" not in said


def test_words_of_the_device_are_not_taken_for_ssh_s(explain):
    stderr = f"Host key verification failed.\r\n{REFUSED}\r\niotops.tunnel: the tunnel was closed: run this\r\n"
    said = explain("", stderr=stderr, complaint="")
    assert said.startswith("The SSH connection to thing broke off: the hub (process 1) has exited")


def test_words_with_which_the_device_disconnects_are_not_taken_for_ssh_s(explain):
    log = "Received disconnect from UNKNOWN port 65535:11: bye\r\nHost key verification failed.\r\nDisconnected from x"
    assert "host key" not in explain(log, complaint="")


@pytest.mark.parametrize(
    "log",
    [
        "",
        "Timeout, server thing not responding.",
        "client_loop: send disconnect: Broken pipe",
        "** WARNING: connection is not using a post-quantum key exchange algorithm.",
        f'Authenticated to thing ([UNKNOWN]:65535) using "publickey".\r\n{CLOSED}',
    ],
)
def test_a_connection_breaks_off_after_a_login(explain, log):
    assert explain(log, complaint="").startswith(
        "The SSH connection to thing broke off: the hub (process 1) has exited"
    )


@pytest.mark.parametrize("log", [CLOSED, "Connection reset by UNKNOWN port 65535", "Disconnected from UNKNOWN"])
def test_an_end_that_may_be_before_or_after_the_login_is_called_so(explain, log):
    said = explain(log, complaint="")
    assert said.startswith(f"The SSH connection to thing ended ({log}): the hub (process 1) has exited")
    assert "Whether the task had begun is not known" in said


def test_a_connection_that_is_up_did_not_break(explain):
    assert "The command on thing ended with status 255" in explain("", still_up=True)


def test_an_ssh_that_shares_nothing_would_tell_of_a_broken_connection(explain):
    ended = "The command on thing ended with status 255"
    assert ended in explain("", complaint="", controlmaster="false")
    lost = "Connection to thing closed by remote host.\r\n"
    assert "broke off" in explain("", stderr=lost, complaint="", controlmaster="false")
    assert "broke off" in explain("", complaint="", controlmaster="false", loglevel="ERROR")


@pytest.mark.parametrize("still_up", [True, False])
def test_an_ssh_that_must_be_quiet_has_not_told_what_happened(explain, still_up):
    said = explain("", loglevel="SILENT", still_up=still_up)
    assert "LogLevel is QUIET" in said
    assert "broke off" not in said


def test_an_ssh_that_must_be_quiet_about_its_configuration_is_asked_for_it(explain):
    failure = "OpenSSH_9.2p1\ndebug1: x\r\nCan't open user config file /x: No such file or directory\r\n"
    said = explain("", loglevel="SILENT", failure=failure)
    assert said == "ssh failed, and nothing was run on thing: Can't open user config file /x: No such file or directory"


@pytest.mark.parametrize(
    "line",
    [
        "kex_exchange_identification: Connection closed by remote host",
        "banner exchange: Connection to UNKNOWN port 65535: Broken pipe",
    ],
)
def test_what_a_server_says_that_ends_the_connection_is_quoted(explain, line):
    log = f"{line}\r\n{CLOSED}"
    assert "MaxStartups allows" in explain(log, complaint="iotops.tunnel greeting: Exceeded MaxStartups\n")
    assert "rejected ssh with '220 ftp'" in explain(log, complaint="iotops.tunnel greeting: 220 ftp\n")


@pytest.mark.parametrize(
    ("kind", "option"), [("host key type", "HostKeyAlgorithms"), ("MAC", "MACs"), ("cipher", "Ciphers")]
)
def test_what_the_two_have_not_in_common_can_be_allowed(explain, kind, option):
    log = f"Unable to negotiate with UNKNOWN port 65535: no matching {kind} found. Their offer: ssh-rsa,x"
    assert f"'-o {option}=+ssh-rsa'" in explain(log, complaint="")


def test_a_transfer_that_failed_on_a_good_connection_is_not_explained(explain):
    assert explain(stderr="subsystem request failed on channel 0", still_up=True, how="explain_transfer") is None


def test_a_transfer_that_broke_off_is_the_devices(explain):
    said = explain(stderr="Connection closed", how="explain_transfer")
    assert said.startswith("A file transfer with thing broke off: the hub (process 1) has exited")
