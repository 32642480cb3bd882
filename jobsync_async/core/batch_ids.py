"""The ids of a batch, and what is known of each. Pure.

* An id is open until it is closed, once: as done here, as done elsewhere, or as failed.
* An id that is taken to be begun is not taken again before it is given back.
* Two ids with one text are one id, named by the first of them.

Ids are numbered in the order of coming. Everything else is kept by that number, in arrays: a
million ids cost a few bytes each beside themselves.
"""

from __future__ import annotations

from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import compress, count, islice

from jobsync_async.core.hashing import ids_key, task_sum
from jobsync_async.core.ids import id_texts, unequal_texts
from jobsync_async.types import TaskOrId, task_id_of

OPEN, HERE, ELSEWHERE, FAILED = range(4)


class BatchIds:
    """The ids, their texts and tokens, by number.

    Args:
        before: the `sum` of what came before, where these are a portion of a stream.

    Attributes:
        ids, texts, tokens: of each id, when all have been taken in. The tokens come last, by
            `hash_tokens`.
        errors: why ids failed, by number.
        sum: of `task_sum` over all texts, and those before.
    """

    def __init__(self, before: int = 0) -> None:
        self.ids: Sequence[Hashable] = ()
        self.texts: Sequence[str] = ()
        self.tokens = array("I")
        self.errors: dict[int, str] = {}
        # By text, in the order of coming. Of plain strings nothing else is kept meanwhile: the
        # collector looks through each list, each time.
        self._numbers: dict[str, int] = {}
        self._ids: list[Hashable] | None = None
        # Ids that came together with some that are no strings: those may be equal to others.
        self._others: dict[Hashable, str] = {}
        self.sum = before
        self._state = bytearray()
        self._counts = [0, 0, 0, 0]
        self._todo: defaultdict[int, array[int]] = defaultdict(partial(array, "I"))
        self._line: deque[int] = deque()  # tokens whose ids may be taken, each once
        self._in_line: set[int] = set()

    # -- taking them in ----------------------------------------------------------------------------

    def add(self, ids: Iterable[TaskOrId], codec: str) -> None:
        """Take in some more ids.

        Raises ConfigError for one that cannot be an id, or for two that are equal and have
        different texts: no result could tell them apart.
        """
        given = [task_id_of(each) for each in ids]
        texts = id_texts(given, codec)
        if texts is given and self._ids is None:
            self._add(dict.fromkeys(text for text in texts if text not in self._numbers))
        else:
            if self._ids is None:
                self._ids = list(self._numbers)
            different = self._different(given, texts, self._ids)
            self._add(different)
            self._ids += different.values()

    def _different(
        self, ids: Iterable[Hashable], texts: Iterable[str], known: Sequence[Hashable]
    ) -> dict[str, Hashable]:
        different: dict[str, Hashable] = {}
        for task_id, text in zip(ids, texts, strict=True):
            if text in self._numbers or text in different:
                continue
            other = self._others.setdefault(task_id, text)
            number = self._numbers.get(task_id)  # type: ignore[call-overload]
            if other == text and number is not None and known[number] == task_id:
                other = next(islice(self._numbers, number, None))
            if other != text:
                raise unequal_texts(other, text)
            different[text] = task_id
        return different

    def _add(self, texts: Collection[str]) -> None:
        self._numbers.update(zip(texts, count(len(self._numbers))))
        self.sum += sum(map(task_sum, texts))

    def complete(self) -> None:
        """All ids have been taken in."""
        self.texts = tuple(self._numbers)
        self.ids = self.texts if self._ids is None else tuple(self._ids)
        self._ids, self._numbers, self._others = None, {}, {}
        self._state = bytearray(len(self.ids))
        self._counts[OPEN] = len(self.ids)

    def forget(self) -> None:
        """Let go of all ids at once. What refers to this may wait for the collector."""
        self.ids, self.texts, self.tokens = (), (), array("I")
        self.errors, self._state = {}, bytearray()
        self._todo.clear()
        self._line.clear()
        self._in_line.clear()

    @property
    def key(self) -> bytes:
        """The same for the same set of ids, with those before, in any order."""
        return ids_key(self.sum)

    def hash_tokens(self, most: int, token_of: Callable[[Hashable], int]) -> bool:
        """Find the tokens of so many more ids; whether that were not all."""
        first, todo = len(self.tokens), self._todo
        tokens = list(map(token_of, self.ids[first : first + most]))
        self.tokens.extend(tokens)
        for number, token in enumerate(tokens, first):
            todo[token].append(number)
        return len(self.tokens) < len(self.ids)

    # -- which are to be begun ---------------------------------------------------------------------

    def offer(self, tokens: Iterable[int]) -> None:
        """Ids on these tokens may be taken."""
        for token in self._todo.keys() & tokens:
            if token not in self._in_line and self._todo[token]:
                self._in_line.add(token)
                self._line.append(token)

    def take(self, most: int, may_begin: Callable[[int], bool]) -> list[int]:
        """Up to so many open ids on tokens that are offered, and for which `may_begin` is true now.
        Other tokens are no longer offered."""
        taken: list[int] = []
        while self._line and len(taken) < most:
            token = self._line[0]
            todo = self._todo[token]
            if not todo or not may_begin(token):
                self._in_line.discard(self._line.popleft())
                continue
            while todo and len(taken) < most:
                number = todo.pop()
                if self._state[number] == OPEN:
                    taken.append(number)
        return taken

    def give_back(self, number: int) -> None:
        """An id that was taken may be taken again, when its token is offered."""
        if self._state[number] == OPEN:
            self._todo[self.tokens[number]].append(number)

    def to_begin(self) -> bool:
        """Whether any may be taken."""
        return bool(self._line)

    # -- what is done with -------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.ids)

    def count(self, state: int) -> int:
        """How many ids are in a state."""
        return self._counts[state]

    def is_open(self, number: int) -> bool:
        """Whether it is not done with, as far as is known."""
        return self._state[number] == OPEN

    def close(self, number: int, state: int, error: str | None = None) -> bool:
        """An id is done with; False when it was before."""
        if self._state[number] != OPEN:
            return False
        self._state[number] = state
        self._counts[OPEN] -= 1
        self._counts[state] += 1
        if error is not None:
            self.errors[number] = error
        return True

    def close_rest(self) -> None:
        """What is open was done elsewhere."""
        self._state = self._state.replace(bytes([OPEN]), bytes([ELSEWHERE]))
        self._counts[ELSEWHERE] += self._counts[OPEN]
        self._counts[OPEN] = 0

    def waiting(self, most: int, elsewhere: Callable[[int], bool]) -> Iterator[list[int]]:
        """Open ids that are not taken, on tokens for which `elsewhere` is true; so many at a
        time."""
        portion: list[int] = []
        for token, todo in tuple(self._todo.items()):
            if not todo or not elsewhere(token):
                continue
            for number in tuple(todo):
                if self._state[number] == OPEN:
                    portion.append(number)
                    if len(portion) == most:
                        yield portion
                        portion = []
        if portion:
            yield portion

    def on_tokens(self) -> Mapping[int, int]:
        """How many ids there are on each token that has any."""
        return {token: len(todo) for token, todo in self._todo.items() if todo}

    def in_state(self, state: int) -> Iterator[Hashable]:
        """The ids in a state."""
        return compress(self.ids, self._state.translate(bytes(now == state for now in range(256))))
