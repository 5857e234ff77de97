"""Who looks where: a session for each open page."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from wsigen.painting.grid import Rectangle, bounding
from wsigen.viewer.live.queue import BlockCutter, Blocks

MOST_SESSIONS = 16
MOST_CHANGES = 256  # rectangles that wait for a page; if there are more, the page gets the rectangle around them


@dataclass
class Session:
    """One page: the part of level 0 that it shows, what is to be painted for it, and what has changed meanwhile."""

    look: Rectangle | None = None
    blocks: Blocks = field(default_factory=Blocks)
    changes: list[Rectangle] = field(default_factory=list)

    def note(self, part: Rectangle) -> None:
        """Remember that a part looks different now."""
        self.changes.append(part)
        if len(self.changes) > MOST_CHANGES:
            self.changes = [bounding(self.changes)]

    def take_changes(self) -> list[Rectangle]:
        """Parts that look different since the last call."""
        found, self.changes = self.changes, []
        return found


class Sessions:
    """The sessions of a slide by name, the page that moved last at the end. For one thread at a time."""

    def __init__(self) -> None:
        self._sessions: dict[str, Session] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of all sessions."""
        return tuple(self._sessions)

    def join(self) -> str | None:
        """Begin a session and return its name; None where there are too many."""
        if len(self._sessions) >= MOST_SESSIONS:
            return None
        name = secrets.token_urlsafe(12)
        self._sessions[name] = Session()
        return name

    def leave(self, name: str) -> None:
        """End a session."""
        self._sessions.pop(name, None)

    def find(self, name: str) -> Session | None:
        """A session, None if there is none of this name."""
        return self._sessions.get(name)

    def look(self, name: str, x: int, y: int, width: int, height: int, cutter: BlockCutter) -> bool:
        """Set what a page shows; False if there is no such session."""
        session = self._sessions.pop(name, None)
        if session is None:
            return False
        self._sessions[name] = session
        session.look = cutter.clipped(x, y, width, height)
        session.blocks = cutter.cut(session.look)
        return True

    def cut_again(self, cutter: BlockCutter) -> None:
        """Cut what all pages show for another slide."""
        for session in self._sessions.values():
            if session.look is not None:
                session.look = cutter.clipped(*session.look)
            session.blocks = cutter.cut(session.look)

    def note(self, part: Rectangle) -> None:
        """Remember for all pages that a part looks different now."""
        for session in self._sessions.values():
            session.note(part)

    def blocks(self) -> list[Blocks]:
        """What is to be painted for each page, the page that moved last first."""
        return [session.blocks for session in reversed(self._sessions.values())]
