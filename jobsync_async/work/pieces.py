"""The pieces of a batch that are this worker's to do: begun ahead in large groups, done one by one,
and recorded in large groups.

* A piece is held, as a claim is, from before it is begun until its end is recorded.
* Only a piece that has lost no owner is begun ahead. So an id that ends its workers makes none
  suspicious but those that were begun with it, once, and these are then begun one by one.
* A piece that was begun and waits for its handler holds up no token: when that is to go, it is let
  go of at once. So it is when the cluster is paused.
* What a handler has done is recorded also when its claim did not last. The statement's fence says
  whether it counts.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import suppress

import anyio

from jobsync_async.core.batch_ids import BatchIds
from jobsync_async.core.rows import Work
from jobsync_async.core.runs import Begun
from jobsync_async.core.window import Window
from jobsync_async.errors import NotOwner, StoreError
from jobsync_async.tasks.worker import Worker
from jobsync_async.work.batch_run import BatchRun
from jobsync_async.work.holding import Holding

_MOST_AT_ONCE = 2_000
_MOST_BEHIND = 4_000
_IN_TURN = 50
# Completions that come within this are recorded together, unless somebody waits for one.
_PACE_SEC = 0.05
# How long a batch that is cut off waits for what its handlers have done to be recorded.
_LAST_WORDS_SEC = 1.0


class Piece(Holding):
    """An id of a batch that is held to be done here.

    Attributes:
        number: the id's.
        work: what is recorded of it; known once it is entered.
        begun: the tables say so. going: its token is to go, or somebody waits for its turn.
        on_going: called when that is so, once; None while its handler runs.
    """

    def __init__(self, worker: Worker, ids: BatchIds, number: int, fence: str | None) -> None:
        super().__init__(worker, ids.ids[number], ids.texts[number], ids.tokens[number], fence)
        self.number = number
        self.begun = self.going = False
        self.on_going: Callable[[Piece], None] | None = None

    @property
    def work(self) -> Work:
        return Work(self.task, self.claim.token_id, self.claim.epoch)

    def revoked(self) -> None:
        super().revoked()
        self._go()

    def lost(self, why: str) -> None:
        super().lost(why)
        self._go()

    def give_way(self) -> None:
        super().give_way()
        self._go()

    def _go(self) -> None:
        self.going = True
        told, self.on_going = self.on_going, None
        if told is not None:
            told(self)


class Ahead:
    """Begins pieces ahead of their handlers. `run` is a task; `ready` is where handlers take them.

    Args:
        least: how many are begun ahead at least, which is how many handlers run at once.
        behind: how many pieces are done and not recorded.
        judge: what is to be done about pieces that were not begun.
        one_by_one: what is to be done about a number whose turn may have to be waited for.
    """

    def __init__(
        self,
        worker: Worker,
        run: BatchRun,
        ids: BatchIds,
        fence: str | None,
        least: int,
        behind: Callable[[], int],
        judge: Callable[[Sequence[tuple[Piece, Begun | None]]], Awaitable[None]],
        one_by_one: Callable[[int], None],
    ) -> None:
        self._worker = worker
        self._run = run
        self._ids = ids
        self._fence = fence
        self._window = Window(least)
        self._behind = behind
        self._judge = judge
        self._one_by_one = one_by_one
        self._wanted = asyncio.Event()
        self._waiting: set[Piece] = set()  # begun, and not started or let go of
        self._beginning = self._started = 0
        self._paused = False
        self._going: list[Piece] = []
        self._gone = asyncio.Event()
        self.ready: asyncio.Queue[Piece | int] = asyncio.Queue()
        # Made once: one for each piece would be as much for the collector as the piece itself.
        self._on_going = self._goes

    def want(self) -> None:
        """There may be something to begin."""
        self._wanted.set()

    @property
    def idle(self) -> bool:
        """Whether nothing is begun ahead, and nothing could be."""
        return not (self._waiting or self._beginning or self._ids.to_begin())

    def start(self, piece: Piece) -> bool:
        """The handler of a piece from `ready` is called now; False when it was let go of."""
        if self._worker.paused is not None:
            piece.give_way()
        if piece.going:
            return False
        piece.on_going = None
        self._started += 1
        self._waiting.discard(piece)
        if len(self._waiting) <= self._window.size // 2:
            self._wanted.set()
        return True

    def pause(self) -> None:
        """Begin nothing: one is to run alone."""
        self._paused = True
        self.put_back()

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        self._wanted.set()

    def put_back(self) -> None:
        """Let go of what waits for its handler; it is begun again."""
        for piece in tuple(self._waiting):
            piece.give_way()

    def hold(self, number: int) -> Piece:
        """A piece for a number, not entered yet, that is not begun ahead."""
        return Piece(self._worker, self._ids, number, self._fence)

    def _goes(self, piece: Piece) -> None:
        if piece.begun:  # else whoever begins it sees that
            self._waiting.discard(piece)
            self._going.append(piece)
            self._gone.set()

    async def run(self) -> None:
        """Begin what may be, as long as handlers take it; for ever."""
        while True:
            room = self._window.size - len(self._waiting)
            full = room <= self._window.size // 2 or self._behind() > _MOST_BEHIND
            held_back = full or self._paused or self._worker.paused is not None
            taken = [] if held_back else self._take(room)
            if taken:
                await self._begin(taken)
            else:
                await self._wanted.wait()
                self._wanted.clear()

    def _take(self, most: int) -> list[Piece]:
        pieces = [self.hold(number) for number in self._ids.take(most, self._worker.owns)]
        for piece in pieces:
            piece.on_going = self._on_going
        return pieces

    async def _begin(self, pieces: Sequence[Piece]) -> None:
        started, now, self._beginning = self._started, self._worker.clock(), len(pieces)
        entered: list[Piece] = []
        try:
            async for some in in_turn(pieces):
                entered += [piece for piece in some if self._enter(piece)]
            if not entered:
                return
            begun = await self._run.begin([piece.work for piece in entered], 0)
            self._window.adapt(started, now, dry=not self._waiting)
            not_begun = await self._sort(entered, begun)
        except BaseException:  # cleaned up, and raised again
            await self._let_go(entered)
            raise
        finally:
            self._beginning = 0
        if not_begun:
            await self._judge(not_begun)

    def _enter(self, piece: Piece) -> bool:
        """Hold it; False when its token is not here any more, or its turn has not come."""
        if self._worker.turns.first(piece.task) is not None:
            self._one_by_one(piece.number)  # somebody else in this worker is at work on it
            return False
        try:
            piece.enter_at_once()
        except NotOwner:
            self._ids.give_back(piece.number)
            return False
        return True

    async def _sort(
        self, pieces: list[Piece], begun: Mapping[str, Begun]
    ) -> list[tuple[Piece, Begun | None]]:
        """Take all pieces from the list, by what came of beginning them; those that were not
        begun."""
        not_begun: list[tuple[Piece, Begun | None]] = []
        async for some in in_turn(tuple(pieces)):
            for piece in some:
                answer = begun.get(piece.task)
                if answer is None or not answer.begun:
                    piece.leave()
                    not_begun.append((piece, answer))
                    continue
                piece.begun = True
                if piece.going or self._worker.paused is not None:
                    self._goes(piece)
                else:
                    self._waiting.add(piece)
                    self.ready.put_nowait(piece)
            del pieces[: len(some)]
        return not_begun

    async def release(self) -> None:
        """Let go of what waits on tokens that are to go; for ever."""
        while True:
            await self._gone.wait()
            self._gone.clear()
            going, self._going = self._going, []
            await self._let_go(going)

    async def let_go_of_all(self) -> None:
        """The batch is cut off: nothing of it is at work here any more."""
        self.put_back()
        left, self._going = self._going, []
        if left:
            await self._let_go(left)

    async def _let_go(self, pieces: Sequence[Piece]) -> None:
        """Say that they are not at work here, and leave them."""
        me = self._worker.identity
        # A lease that is over is the end of an incarnation, in whose work they were.
        mine = [piece.work for piece in pieces if piece.claim._incarnation == me.incarnation]
        try:
            if mine and self._worker.may_act():
                await self._run.let_go(mine)
        finally:
            for piece in pieces:
                piece.leave()
                self._ids.give_back(piece.number)
                if self._worker.owns(piece.claim.token_id):
                    self._ids.offer([piece.claim.token_id])
            self._wanted.set()


async def in_turn(every: Sequence[Piece]) -> AsyncIterator[Sequence[Piece]]:
    """So few at a time that handlers whose turn comes meanwhile do not wait long."""
    for first in range(0, len(every), _IN_TURN):
        if first:
            await anyio.lowlevel.checkpoint()
        yield every[first : first + _IN_TURN]


class Recorder:
    """Records what handlers have done. `run` is a task.

    Args:
        record: sends one statement.
        recorded: told of each piece, and whether it was completed by this; None when its fence did
            not hold.
    """

    def __init__(
        self,
        record: Callable[[Sequence[Work]], Awaitable[dict[str, bool]]],
        recorded: Callable[[Sequence[tuple[Piece, bool | None]]], Awaitable[None]],
    ) -> None:
        self._record = record
        self._recorded = recorded
        self._done: list[Piece] = []
        self._sent: Sequence[Piece] = ()
        self._there = asyncio.Event()
        self._hurried = asyncio.Event()
        self._on_going = self.hurry

    @property
    def idle(self) -> bool:
        """Whether everything is recorded."""
        return not self._done and not self._sent

    @property
    def behind(self) -> int:
        """How many are not recorded."""
        return len(self._done) + len(self._sent)

    def add(self, piece: Piece) -> None:
        """Its handler has done it."""
        self._done.append(piece)
        self._there.set()
        piece.on_going = self._on_going
        if piece.going:
            self.hurry()

    def hurry(self, _: object = None) -> None:
        """Somebody waits for what is done: for its token, or for the end of the batch."""
        self._hurried.set()

    async def run(self) -> None:
        """Record what is done, for ever; what is left, in the end."""
        try:
            while True:
                await self._there.wait()
                with anyio.move_on_after(_PACE_SEC):
                    await self._hurried.wait()
                self._hurried.clear()
                await self._flush()
                if not self._done:
                    self._there.clear()
        finally:
            try:
                await self._last_words()
            finally:
                for piece in (*self._sent, *self._done):
                    piece.leave()

    async def _last_words(self) -> None:
        """Record what is left, and what was sent without an answer, but not for long."""
        self._sent, self._done = (), [*self._sent, *self._done]
        with anyio.move_on_after(_LAST_WORDS_SEC, shield=True), suppress(StoreError):
            while self._done:
                await self._flush()

    async def _flush(self) -> None:
        self._sent = self._done[:_MOST_AT_ONCE]
        self._done = self._done[_MOST_AT_ONCE:]
        held = await self._record([piece.work for piece in self._sent])
        async for some in in_turn(self._sent):
            for piece in some:
                piece.leave()
            self._sent = self._sent[len(some) :]
            await self._recorded([(piece, held.get(piece.task)) for piece in some])
