# SPDX-License-Identifier: Apache-2.0
"""Errors whose text is a sentence for the operator."""

from __future__ import annotations

from typing import Callable, TypeVar

__all__ = ["ConfigurationError", "Objection", "TunnelClosed", "TunnelRefused", "refuse", "without_frames"]

Objection = Callable[[str, str], None]
"""What to do about a problem that need not be fatal. It is called with the problem, and with the consequence of
continuing. It either warns, or raises :class:`ConfigurationError` as :func:`refuse` does."""


E = TypeVar("E", bound=BaseException)


class ConfigurationError(Exception):
    """What the user asked for is impossible; the text names what is wrong and the remedy."""


class TunnelRefused(Exception):
    """The tunneling service rejected the handshake, and will reject the same handshake again.

    Attributes:
        cause: one word for programs: ``token-used``, ``token-unknown``, ``wrong-mode``, ``tunnel-closed``,
            ``bad-request`` or ``refused``.
        status: the HTTP status of the response.
        channel_id: what AWS's support asks for; empty if the service gave none.
        answer: the text of the response; empty if it has none.
    """

    def __init__(self, message: str, *, cause: str, status: int, channel_id: str = "", answer: str = "") -> None:
        super().__init__(message)
        self.cause = cause
        self.status = status
        self.channel_id = channel_id
        self.answer = answer


class TunnelClosed(Exception):
    """The tunnel was closed or has expired. It never reopens."""


def refuse(problem: str, instead: str) -> None:
    """The :data:`Objection` that accepts no problem.

    Raises:
        ConfigurationError: always.
    """
    raise ConfigurationError(problem)


def without_frames(error: E) -> E:
    """Remove the traceback and the context of an error that is kept.

    They would keep the frames that it passed through, with all their local variables, alive as long as the error.
    """
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error
