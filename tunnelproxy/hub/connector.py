# SPDX-License-Identifier: Apache-2.0
"""What ssh runs as its ``ProxyCommand``: gets a stream from the hub, passes its file descriptor to ssh, and exits.

ssh (with ``ProxyUseFdpass=yes``) gives it a Unix socket as standard output and receives the descriptor there. No byte
of SSH passes through this process. Run by path, with ``python -I -S``: it is done in 15 ms.
"""

from __future__ import annotations

import _socket  # socket itself takes longer to import than all else that is done here
import os
import sys

__all__ = ["main", "peek_greeting"]

MARK = "iotops.tunnel: "
"""Before the one line on stderr that says why there is no stream; the connection plugin looks for it."""

GREETING_MARK = "iotops.tunnel greeting: "
"""Before the line on stderr with which a server greets that may not let ssh in; ssh shows it with -v only."""

_GREETING_BYTES = 200


def main(arguments: list[str]) -> int:
    """Pass a stream to a service of a thing to the process that reads standard output.

    Args:
        arguments: what :func:`~.client.connector_command` puts together.
    """
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    from tunnelproxy.hub.client import OPEN_SECONDS, HealthCheck, HubError, open_stream

    if len(arguments) not in (3, 4, 7):
        usage = "connector.py ACCOUNT THING SERVICE [SECONDS [HTTP_SERVICE PATH STATUSES]]"
        print(f"{MARK}usage: {usage}", file=sys.stderr)
        return 1
    account, thing, service, *more = arguments
    timeout = float(more[0]) if more else OPEN_SECONDS
    try:
        if len(more) > 1:
            from tunnelproxy.hub.health import check

            statuses = tuple(int(status) for status in more[3].split(","))
            check(thing, HealthCheck(more[1], more[2], statuses), account=account, timeout=timeout)
        stream = open_stream(thing, service, account=account, timeout=timeout)
    except HubError as error:
        print(f"{MARK}{error}", file=sys.stderr)
        return 1
    greeting = peek_greeting(stream)
    if greeting:
        print(f"{GREETING_MARK}{greeting}", file=sys.stderr)
    ssh = _socket.socket(fileno=os.dup(sys.stdout.fileno()))
    ssh.sendmsg([b"\0"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, stream.to_bytes(4, sys.byteorder))])
    ssh.close()
    return 0


def peek_greeting(stream: int) -> str:
    """The first line that waits on a socket, where that is not an SSH server's version (RFC 4253, section 4.2).

    Args:
        stream: the descriptor; what waits there is not taken.
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
