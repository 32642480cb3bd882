"""What a person may do to the cluster from the page. Each act asks once, and says what it is that
will happen; it is done in the name of the person.

A new act is a line of `ACTS` and a function.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from jobsync_async.core.hashing import task_text, token_hasher
from jobsync_async.core.ids import require_storable
from jobsync_async.errors import ConfigError
from jobsync_async.operations import batches
from jobsync_async.postgres.store import Store
from jobsync_async.work.pins import PinRegistry

Values = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ask:
    """What a person is asked for: the value's name, how it is called for people, and whether it
    may be left out. `lines` for several, one in each line."""

    name: str
    label: str
    optional: bool = False
    lines: bool = False


@dataclass(frozen=True, slots=True)
class Act:
    """One thing that can be done.

    Attributes:
        name: in addresses. verb: on links and buttons.
        about: names of the values that say what it is done to; they come with the link.
        title: the question, with these values in braces. means: what follows from it.
        do: does it, in whose name the store's statements are, and returns what became of it.
        asks: what else it needs.
    """

    name: str
    verb: str
    about: tuple[str, ...]
    title: str
    means: str
    do: Callable[[Store, Values], Awaitable[str]]
    asks: tuple[Ask, ...] = ()

    def question(self, values: Values) -> str:
        """What is asked once."""
        return self.title.format(**{name: values.get(name, "?") for name in self.about})


def require(act: Act, values: Values) -> None:
    """Raises ConfigError when something is missing, which the person is told."""
    for ask in (*(Ask(name, name) for name in act.about), *act.asks):
        if not ask.optional and not values.get(ask.name, "").strip():
            raise ConfigError(f"give {ask.label.lower()}")


async def _drain(store: Store, values: Values) -> str:
    return await _set_state(store, values, "draining")


async def _undrain(store: Store, values: Values) -> str:
    return await _set_state(store, values, "active")


async def _set_state(store: Store, values: Values, state: str) -> str:
    node = values["node"]
    if node not in [one.name for one in await store.status.nodes()]:
        raise ConfigError(f"there is no worker named {node!r} any more")
    changed = await store.membership.set_state(node, state, reason=_reason(store, values))
    return f"{node} {'is now' if changed else 'was already'} {state}"


async def _evict(store: Store, values: Values) -> str:
    node = values["node"]
    done = await store.steering.evict(node, store.context.by, _reason(store, values))
    if not done.changed:
        return f"{node} was evicted already, by {done.by}"
    if done.older:
        return f"{node} is evicted, but is of 0.1.0 and joins again: end its process"
    return f"{node} is evicted; others get its tokens when its lease must be over"


async def _allow(store: Store, values: Values) -> str:
    allowed = await store.steering.allow(values["node"], store.context.by)
    return f"{values['node']} {'may join again' if allowed else 'was not evicted'}"


async def _pause(store: Store, values: Values) -> str:
    done = await store.steering.pause(store.context.by, _reason(store, values))
    assert done.pause is not None, "one holds now"
    return f"the cluster {'is now' if done.changed else 'was already'} {done.pause}"


async def _resume(store: Store, values: Values) -> str:
    done = await store.steering.resume(store.context.by)
    return "the cluster goes on" if done.changed else "the cluster was not paused"


def _reason(store: Store, values: Values) -> str | None:
    """Why, in the person's words; None for nothing. Raises ConfigError for what cannot be kept."""
    if reason := values.get("reason", "").strip():
        require_storable("the reason", reason, store.codec)
    return reason or None


async def _pin(store: Store, values: Values) -> str:
    task, patterns = values["task"], values["patterns"].split("\n")
    wanted = [pattern.strip() for pattern in patterns if pattern.strip()]
    days = values.get("days", "").strip()
    try:
        until = float(days) if days else None
    except ValueError:
        raise ConfigError(f"days must be a number; got {days!r:.50}") from None
    settings = await store.inspection.settings()
    token_of = token_hasher(settings.total_tokens, settings.hash_function)
    registry = PinRegistry(store.pins, token_of, store.context.by, store.codec)
    refused = await registry.register([(task, wanted, _reason(store, values))], until)
    if refused:
        raise ConfigError(f"not pinned: {refused[0]}")
    return f"task {task!r} is pinned to {', '.join(wanted)}"


async def _unpin(store: Store, values: Values) -> str:
    cleared = await store.pins.clear_tasks([task_text(values["task"])])
    return f"the pin of task {values['task']!r} {'is gone' if cleared else 'was gone already'}"


async def _retry(store: Store, values: Values) -> str:
    try:
        date = dt.date.fromisoformat(values["date"])
    except ValueError:
        raise ConfigError(f"{values['date']!r:.50} is no date") from None
    run = await batches.find_run(store, values["batch"], date)
    if run is None:
        raise ConfigError(f"there is no run of {values['batch']!r} on {date}")
    told = await batches.retry(store, run, store.context.by)
    if told["refused"] is not None:
        raise ConfigError(f"nothing changed: {told['refused']}")
    return (
        f"{batches.title(told)} is open again; {told['forgotten']:,} ids are tried again by the "
        "next run_batch of it"
    )


_REASON = Ask("reason", "Reason", optional=True)

ACTS: dict[str, Act] = {
    act.name: act
    for act in (
        Act(
            "drain",
            "Drain",
            ("node",),
            "Drain {node}?",
            "It finishes what it is doing, hands on every token, and stays without any. It can be "
            "undrained at any time.",
            _drain,
            (_REASON,),
        ),
        Act(
            "undrain",
            "Undrain",
            ("node",),
            "Let {node} have tokens again?",
            "It gets its share at the next rebalance, which is now.",
            _undrain,
            (_REASON,),
        ),
        Act(
            "evict",
            "Evict",
            ("node",),
            "Evict {node}?",
            "For a worker that does not listen. It may not act any more, and others get its tokens "
            "when its lease must be over. No worker of this name joins until it is allowed again.",
            _evict,
            (_REASON,),
        ),
        Act(
            "allow",
            "Allow again",
            ("node",),
            "Let workers named {node} join again?",
            "Its eviction ends. A worker of this name that waits joins at once.",
            _allow,
        ),
        Act(
            "pause",
            "Pause",
            (),
            "Pause the whole cluster?",
            "Every worker keeps its tokens and goes on with what it runs. Nothing new starts until "
            "somebody resumes it, whatever is restarted.",
            _pause,
            (_REASON,),
        ),
        Act(
            "resume",
            "Resume",
            (),
            "Let the cluster go on?",
            "Workers start new work again at once.",
            _resume,
        ),
        Act(
            "pin",
            "Pin",
            ("task",),
            "Pin task {task}?",
            "Its token moves at once to a worker whose name matches. All other tasks on the same "
            "token go with it.",
            _pin,
            (
                Ask("patterns", "Names of workers, as SQL LIKE patterns, one a line", lines=True),
                _REASON,
                Ask("days", "Days until it ends (empty: never)", optional=True),
            ),
        ),
        Act(
            "unpin",
            "Unpin",
            ("task",),
            "Clear the pin of task {task}?",
            "Any worker may have its token then.",
            _unpin,
        ),
        Act(
            "retry",
            "Retry",
            ("batch", "date"),
            "Try again what was given up in {batch} of {date}?",
            "The run is opened anew, and the next run_batch that continues it tries these ids "
            "again. What is set aside stays so. Refused while a worker runs it.",
            _retry,
        ),
    )
}
