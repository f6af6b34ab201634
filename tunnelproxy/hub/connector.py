# SPDX-License-Identifier: Apache-2.0
"""ssh's ``ProxyCommand``: gets a stream from the hub, passes its file descriptor to ssh, and exits.

ssh (with ``ProxyUseFdpass=yes``) passes a Unix socket as standard output and receives the descriptor there. No byte of
SSH passes through this process.

ssh starts it for each connection, by path, with ``python -I -S``. So the usual case, in which the hub runs and has a
stream, is handled here, with modules that Python has loaded anyway: ``_socket``, ``_json``, and a request written by
hand. That takes 11 ms of processor time, 7 of them for Python's own start; :mod:`socket`, :mod:`json` and :mod:`.wire`
would add 20. All other cases are left to :mod:`.wire`.
"""

from __future__ import annotations

import _socket
import os
import sys
from _json import encode_basestring_ascii

__all__ = ["main", "peek_greeting"]

MARK = "iotops.tunnel: "
"""The prefix of the line on stderr that says why there is no stream; the connection plugin looks for it."""

GREETING_MARK = "iotops.tunnel greeting: "
"""The prefix of the line on stderr that quotes a server that is not an SSH server; ssh shows it with -v only."""

OPEN_SECONDS = 20.0
"""As :data:`.wire.OPEN_SECONDS`."""

SILENT_SECONDS = 10.0
"""As :data:`.wire.SILENT_SECONDS`."""

_GREETING_BYTES = 200
_READ_BYTES = 64 * 1024
_DESCRIPTOR_BYTES = 4


def main(arguments: list[str], output: int = 1) -> int:
    """Pass a stream to a service of a thing to the process at the other end of standard output.

    Args:
        arguments: those that :func:`~.client.connector_command` assembles.
        output: the descriptor of standard output.

    Returns:
        the exit status.
    """
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from tunnelproxy.hub.location import HubError

    if len(arguments) not in (3, 4, 7):
        usage = "connector.py ACCOUNT THING SERVICE [SECONDS [HTTP_SERVICE PATH STATUSES]]"
        print(f"{MARK}usage: {usage}", file=sys.stderr)
        return 1
    account, thing, service, *more = arguments
    timeout = float(more[0]) if more else OPEN_SECONDS
    try:
        if len(more) > 1:
            from tunnelproxy.hub.health import check

            statuses = [int(status) for status in more[3].split(",")]
            check(thing, more[1], more[2], statuses=statuses, account=account, timeout=timeout)
        stream = _open_stream(account, thing, service, timeout)
    except HubError as error:
        print(f"{MARK}{error}", file=sys.stderr)
        return 1
    greeting = peek_greeting(stream)
    if greeting:
        print(f"{GREETING_MARK}{greeting}", file=sys.stderr)
    _pass_on(stream, output)
    return 0


def _open_stream(account: str, thing: str, service: str, timeout: float) -> int:
    """Open a stream, and return its file descriptor.

    Raises:
        HubError: there is none.
    """
    if account:
        try:
            return _open_stream_of_running_hub(account, thing, service, timeout)
        except OSError:
            pass  # no hub runs, or it exited: the full client starts one, or says why it cannot
    from tunnelproxy.hub.wire import open_stream

    return open_stream(thing, service, account=account, timeout=timeout)


def _open_stream_of_running_hub(account: str, thing: str, service: str, timeout: float) -> int:
    """Open a stream.

    Raises:
        HubError: the hub has none.
        OSError: no hub runs, or it exited before it answered.
    """
    from tunnelproxy.hub.location import PROTOCOL, SOCKET_NAME, directory

    target = {"thing": thing, "service": service, "account": account}
    fields = ", ".join(f'"{name}": {encode_basestring_ascii(value)}' for name, value in target.items())
    request = f'{{"protocol": {PROTOCOL}, "op": "open", "speaks_first": true, "timeout": {timeout!r}, {fields}}}\n'
    hub = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        hub.settimeout(SILENT_SECONDS)
        hub.connect(os.path.join(directory(), SOCKET_NAME))
        hub.sendall(request.encode())
        try:
            hub.recv(1, _socket.MSG_PEEK)
        except _socket.timeout:
            return _wait_longer(hub, timeout)
        reply, ancillary, _, _ = hub.recvmsg(_READ_BYTES, _socket.CMSG_LEN(_DESCRIPTOR_BYTES))
    finally:
        hub.close()
    if not reply:
        raise ConnectionResetError
    for level, kind, data in ancillary:
        if (level, kind) == (_socket.SOL_SOCKET, _socket.SCM_RIGHTS) and f'"protocol": {PROTOCOL}'.encode() in reply:
            return int.from_bytes(data[:_DESCRIPTOR_BYTES], sys.byteorder)
    return _explain(reply)


def _wait_longer(hub: _socket.socket, timeout: float) -> int:
    """Wait for the reply, for as long as the hub answers others.

    Raises:
        HubError: the hub has no stream, or does not answer.
        ConnectionResetError: it exited before it answered.
    """
    import socket

    from tunnelproxy.hub.wire import HubEndedError, check_responsive, receive_stream

    check_responsive()
    with socket.socket(fileno=hub.detach()) as waiting:
        try:
            return receive_stream(waiting, timeout - SILENT_SECONDS)
        except HubEndedError:
            raise ConnectionResetError from None


def _explain(reply: bytes) -> int:
    """Raise the HubError of a reply without a stream."""
    import json

    from tunnelproxy.hub.location import HubError
    from tunnelproxy.hub.wire import check_reply

    check_reply(json.loads(reply))
    raise HubError("the stream cannot be received: raise the limit of open files (ulimit -n)")


def _pass_on(stream: int, output: int) -> None:
    """Send a descriptor over the Unix socket that another descriptor is."""
    ssh = _socket.socket(fileno=os.dup(output))
    rights = stream.to_bytes(_DESCRIPTOR_BYTES, sys.byteorder)
    ssh.sendmsg([b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
    ssh.close()


def peek_greeting(stream: int) -> str:
    """The first line that has arrived on a socket, unless it is an SSH server's version (RFC 4253, section 4.2).

    Args:
        stream: the socket's descriptor; nothing is consumed.
    """
    peeked = _socket.socket(fileno=os.dup(stream))
    try:
        data = peeked.recv(_GREETING_BYTES, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
    except OSError:
        return ""
    finally:
        peeked.close()
    if data.startswith(b"SSH-"):
        return ""
    line = data.lstrip().split(b"\n")[0].decode("ascii", "replace").strip()
    return "".join(character if character.isprintable() else " " for character in line)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
