"""One page's frame as it is now, and the messages that made it so.

The last messages are kept. A viewer is at a place in them, and nothing is queued for it. One that
is too far behind loads the page anew.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

from jobsync_async.web.changes import Frame, Render, difference, encoded

RELOAD = b"event: reload\ndata: {}\n\n"
HERE = b"event: here\ndata: {}\n\n"
_KEPT = 200  # messages
_MOST_KEPT = 2_000_000  # bytes


class Channel:
    """What all viewers of one page share.

    Attributes:
        frame: what the page shows now. number: of the last message.
        viewers: how many follow it. changed: set at the next message.
    """

    def __init__(self, render: Render) -> None:
        self.frame = Frame()
        self.number = 0
        self.viewers = 0
        self._render = render
        self._kept: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self.changed = asyncio.Event()

    def show(self, frame: Frame, now: float, boot: str, more: Mapping[str, Any] = {}) -> None:
        """Make this the frame, and tell what is new of it, with what is `more` told."""
        message = {**difference(self.frame, frame, self._render, now), **more}
        self.frame = frame
        if not message:
            return
        self.number += 1
        data = encoded({"now": round(now, 2), **message}, f"{boot}.{self.number}")
        self._kept.append((self.number, data))
        self._size += len(data)
        while len(self._kept) > _KEPT or (self._size > _MOST_KEPT and len(self._kept) > 1):
            self._size -= len(self._kept.popleft()[1])
        self.tell()

    def tell(self) -> None:
        """Wake all viewers."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def after(self, number: int) -> list[tuple[int, bytes]] | None:
        """The messages after this one; None when they are not kept any more."""
        if number == self.number:
            return []
        if number > self.number or not self._kept or self._kept[0][0] > number + 1:
            return None
        return [one for one in self._kept if one[0] > number]
