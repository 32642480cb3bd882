"""What happened, read from what was left behind, and judged. Knows nothing of the product: only
files, tables and times.

A worker *holds* a task from the check that let it begin until the last check that said yes, or
until it ended its work while its lease stood. Checks are moments, so these are facts, whatever was
stopped or killed in between.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psycopg

TABLES = """
CREATE TABLE public.counter (task integer PRIMARY KEY, n bigint NOT NULL);
INSERT INTO public.counter SELECT task, 0 FROM generate_series(0, 999) AS task;
-- One row per fenced commit. The counter's row lock is held to the commit, so n is the order of
-- commits of a task.
CREATE TABLE public.effect (
    task integer, n bigint, epoch bigint NOT NULL, worker text NOT NULL, epoch_at_commit bigint,
        PRIMARY KEY (task, n)
);
CREATE FUNCTION public.note_epoch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    UPDATE public.effect SET epoch_at_commit = (SELECT epoch FROM public.sync_token
        WHERE token_id = NEW.task)
    WHERE task = NEW.task AND n = NEW.n;
    RETURN NULL;
END $$;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON public.effect DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION public.note_epoch();
-- Every state of every token, in order.
CREATE TABLE public.token_history (
    seq bigint GENERATED ALWAYS AS IDENTITY, token_id integer, node text, incarnation uuid,
        epoch bigint
);
CREATE FUNCTION public.note_token() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO public.token_history (token_id, node, incarnation, epoch)
    VALUES (NEW.token_id, NEW.node, NEW.incarnation, NEW.epoch);
    RETURN NULL;
END $$;
CREATE TRIGGER token_history AFTER INSERT OR UPDATE ON public.sync_token
    FOR EACH ROW EXECUTE FUNCTION public.note_token();
"""
"""The resource that is written through the fence, and what watches it; tasks are numbers, each its
own token."""


class Act(NamedTuple):
    """An effect without the fence: when it was checked, and when it was done."""

    worker: str
    task: int
    epoch: int
    checked: float
    done: float


class Commit(NamedTuple):
    """An effect through the fence, as the table has it. `n` counts the commits of a task."""

    task: int
    n: int
    epoch: int
    worker: str
    epoch_at_commit: int | None


class TokenState(NamedTuple):
    """One state of a token's row."""

    token: int
    incarnation: object
    epoch: int


class Pause(NamedTuple):
    """A process was stopped from `began` to `ended`."""

    worker: str
    began: float
    ended: float


@dataclass
class Stay:
    """Work of one worker on one task under one epoch, from one beginning."""

    worker: str
    task: int
    epoch: int
    began: float
    held_until: float
    ended: float | None = None

    def __str__(self) -> str:
        return (
            f"{self.worker} on task {self.task} in epoch {self.epoch}, {self.began:.3f} to "
            f"{self.held_until:.3f}"
        )


@dataclass
class History:
    """Everything that was left behind. Times are of the clock that all processes share."""

    stays: list[Stay] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    commits: list[Commit] = field(default_factory=list)
    acknowledged: list[Commit] = field(default_factory=list)
    tokens: list[TokenState] = field(default_factory=list)
    pauses: list[Pause] = field(default_factory=list)

    def moves(self) -> int:
        """How often a token got an owner, after its first one."""
        owners = defaultdict[int, list[object]](list)
        for state in self.tokens:
            if state.incarnation is not None and owners[state.token][-1:] != [state.incarnation]:
                owners[state.token].append(state.incarnation)
        return sum(len(seen) - 1 for seen in owners.values())


@dataclass
class Report:
    """What the judge found.

    Attributes:
        violations: what must never be.
        unfenced_overlaps: acts without the fence that came after another worker had begun, each
            because its process was stopped between the check and the act: the gap that nobody can
            close.
        double: those of the violations that say that two owned one task.
        lost: commits that were acknowledged and are not there; each is a violation, too.
    """

    violations: list[str]
    unfenced_overlaps: list[Act]
    double: list[str]
    lost: list[Commit]


def judge(history: History) -> Report:
    """Find what must never be."""
    stays = defaultdict[int, list[Stay]](list)
    for stay in history.stays:
        stays[stay.task].append(stay)
    double = [found for of_task in stays.values() for found in _two_at_once(of_task)]
    overlaps: list[Act] = []
    for act in history.acts:
        others = [other.began for other in stays[act.task] if other.epoch > act.epoch]
        if min(others, default=act.done) < act.done:
            stopped = any(
                p.worker == act.worker and p.began <= act.done and p.ended >= act.checked
                for p in history.pauses
            )
            if stopped and act.checked <= min(others):
                overlaps.append(act)
            else:
                double.append(f"{act} was done when another had begun, and nothing had stopped it")
    violations = [*double, *_bad_commits(history.commits)]
    lost = list(_lost(history.acknowledged, history.commits))
    violations += [f"acknowledged and not there: {commit}" for commit in lost]
    violations += _bad_tokens(history.tokens)
    return Report(violations, overlaps, double, lost)


def _two_at_once(stays: Iterable[Stay]) -> Iterable[str]:
    latest: Stay | None = None
    workers = dict[int, str]()
    for stay in sorted(stays, key=lambda stay: stay.began):
        if workers.setdefault(stay.epoch, stay.worker) != stay.worker:
            yield f"two workers had one epoch: {stay}; and {workers[stay.epoch]}"
        if latest is not None:
            if stay.began < latest.held_until:
                yield f"two at once: {latest}; {stay}"
            if stay.epoch < latest.epoch:
                yield f"epochs went back: {latest}; {stay}"
        if latest is None or stay.held_until > latest.held_until:
            latest = stay


def _bad_commits(commits: Iterable[Commit]) -> Iterable[str]:
    by_task = defaultdict[int, list[Commit]](list)
    for commit in commits:
        by_task[commit.task].append(commit)
        if commit.epoch_at_commit != commit.epoch:
            yield f"committed by a former owner: {commit}"
    for task, of_task in by_task.items():
        of_task.sort(key=lambda commit: commit.n)
        if [commit.n for commit in of_task] != list(range(1, len(of_task) + 1)):
            yield f"commits of task {task} are missing or double"
        for before, after in pairwise(of_task):
            if after.epoch < before.epoch:
                yield f"committed out of epoch order: {before}, then {after}"
            if after.epoch == before.epoch and after.worker != before.worker:
                yield f"two workers committed in one epoch: {before}, then {after}"


def _lost(acknowledged: Iterable[Commit], commits: Iterable[Commit]) -> Iterable[Commit]:
    there = {(commit.task, commit.n): (commit.epoch, commit.worker) for commit in commits}
    for commit in acknowledged:
        if there.get((commit.task, commit.n)) != (commit.epoch, commit.worker):
            yield commit


def _bad_tokens(states: Iterable[TokenState]) -> Iterable[str]:
    last = dict[int, TokenState]()
    for state in states:
        before = last.get(state.token)
        last[state.token] = state
        if before is None:
            continue
        if state.epoch < before.epoch or (
            state.incarnation != before.incarnation and state.epoch == before.epoch
        ):
            yield (
                f"the epoch of token {state.token} did not rise with its owner: {before}, then "
                f"{state}"
            )


# -- the plain file --------------------------------------------------------------------------------

_END = "."


def line(act: Act) -> bytes:
    """An act as its line in the file that all workers append to."""
    return f"\n{act.checked} {act.done} {act.worker} {act.task} {act.epoch} {_END}".encode()


def acts(effects: Path) -> list[Act]:
    """The complete lines. One can be cut off where a page of the file ends: it is being written, or
    its writer was killed."""
    found = []
    for fields in map(str.split, effects.read_text("ascii").splitlines()):
        if len(fields) == 6 and fields[-1] == _END:
            checked, done, worker, task, epoch, _ = fields
            found.append(Act(worker, int(task), int(epoch), float(checked), float(done)))
    return found


# -- reading ---------------------------------------------------------------------------------------


def read(
    events: Iterable[tuple[str, Sequence[Any]]], effects: Path, connection: psycopg.Connection[Any]
) -> History:
    """Put together what the workers' logs (pairs of worker and event), the plain file and the
    tables say."""
    history = History()
    open_stays = dict[tuple[str, int, int], Stay]()
    history.acts = acts(effects)
    checks = defaultdict[tuple[str, int, int], list[float]](list)
    for act in history.acts:
        checks[act.worker, act.task, act.epoch].append(act.checked)
    for worker, (kind, *values) in events:
        if kind == "begin":
            began, task, epoch = values
            stay = open_stays[worker, task, epoch] = Stay(worker, task, epoch, began, began)
            history.stays.append(stay)
        elif kind == "end":
            ended, task, epoch, holding = values
            stay = open_stays.pop((worker, task, epoch))
            stay.ended = ended
            if holding:
                stay.held_until = ended
        elif kind == "commit":
            checked, task, epoch, n = values
            history.acknowledged.append(Commit(task, n, epoch, worker, epoch))
    for stay in history.stays:
        said_yes = checks[stay.worker, stay.task, stay.epoch]
        end = float("inf") if stay.ended is None else stay.ended
        stay.held_until = max([stay.held_until, *(t for t in said_yes if stay.began <= t <= end)])
    history.commits = [
        Commit(*row)
        for row in connection.execute(
            "SELECT task, n, epoch, worker, epoch_at_commit FROM public.effect"
        )
    ]
    history.tokens = [
        TokenState(*row)
        for row in connection.execute(
            "SELECT token_id, incarnation, epoch FROM public.token_history ORDER BY seq"
        )
    ]
    return history


def parse(lines: bytes) -> list[list[Any]]:
    """The events in complete lines of a worker's log."""
    return [json.loads(line) for line in lines.splitlines()]
