"""How long work tells whoever waits for it how far it has come."""

from __future__ import annotations

from typing import Protocol


class Reporter(Protocol):
    """A function that long work calls now and then."""

    def __call__(self, what: str, done: float, total: float = 1.0, /) -> None:
        """Take the kind of work, how much of it is done, and of how much; of 1, `done` is a share."""


def silent(what: str, done: float, total: float = 1.0, /) -> None:
    """Report nothing."""
