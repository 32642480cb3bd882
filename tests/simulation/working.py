"""What the statements of ``queries.sql`` about claims, completions and batches do, and the
fence."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable
from typing import Any

from tests.simulation.records import moment, quick
from tests.simulation.statements import Asked, Locked, Result, keys, numbers, rows, statement, texts
from tests.simulation.tables import Batch, Claim, Node, Part

# == the fence, claims and audit ===================================================================


def _fence(q: Asked, token_id: int, epoch: int) -> Any:
    """FOR KEY SHARE of the token's row, if it is this incarnation's under this epoch; whether it
    is, and was before waiting."""
    by_epoch = q.keeps("the fence's epoch")

    def holds(token: Any) -> bool:
        return (
            token is not None
            and token.incarnation == q.incarnation
            and (token.epoch == epoch or not by_epoch)
        )

    if not holds(q.tx.view().token.get(token_id)):
        return False
    if q.keeps("the fence's lock"):
        yield Locked(("token", token_id), "key share")
        if not holds(q.tx.row("token", token_id)):
            return False
    q.tx.fenced.append((token_id, q.incarnation, epoch))
    return True


@statement
def fence(q: Asked) -> Any:
    """What `Claim.fence_sql` gives."""
    held = yield from _fence(q, q.token_id, q.epoch)
    return Result(rows("epoch", [(q.epoch,)])) if held else Result()


def _fenced(q: Asked) -> Any:
    held = []
    for key, task, token, epoch in zip(
        keys(q.task_keys), texts(q.task_ids), numbers(q.token_ids), numbers(q.epochs), strict=True
    ):
        if (yield from _fence(q, token, epoch)):
            held.append((key, task, token, epoch))
    return held


def _begin(q: Asked, key: bytes, task: str, token: int, epoch: int) -> None:
    """The claim of a task that begins, by hand: what a batch keeps in the row stays."""
    row = q.tx.row("claim", (q.date, key)) or Claim(task, token, q.node, epoch, None, q.now)
    q.tx.write(
        "claim", (q.date, key), row._replace(node=q.node, epoch=epoch, error=None, claimed_at=q.now)
    )


@statement
def record_claims(q: Asked) -> Any:
    audit = q.tx.view().audit  # as the statement saw it when it began
    held = yield from _fenced(q)
    writes = not q.all_or_none or len(held) == len(keys(q.task_keys))
    for key, task, token, epoch in held:
        if writes and (q.date, key) not in audit:
            _begin(q, key, task, token, epoch)
    return Result(rows("task_key complete", ((key, (q.date, key) in audit) for key, *_ in held)))


@statement
def record_claim(q: Asked) -> Any:
    complete = (q.date, q.task_key) in q.tx.view().audit
    if not (yield from _fence(q, q.token_id, q.epoch)):
        return Result()
    if not complete:
        _begin(q, q.task_key, q.task_id, q.token_id, q.epoch)
    return Result(rows("complete", [(complete,)]))


@statement
def begin_tasks(q: Asked) -> Any:
    view, came = q.tx.view(), []  # claims and completions as the statement saw them when it began
    otherwise = 0
    for key, task, token, epoch in (yield from _fenced(q)):
        complete, row = (q.date, key) in view.audit, view.claim.get((q.date, key))
        before = row or Claim(task, token, q.node, epoch, None, q.now)
        lost = before.owners_lost + bool(
            before.open
            and before.incarnation != q.incarnation
            and q.keeps("a claim left open is an owner lost")
        )
        put = view.set_aside.get(key)
        free = put is None and lost <= q.most_lost and not complete
        guilty = put is None and lost >= q.lost_limit and not complete
        reason = q.reason.replace("#", str(lost)) if put is None else put[4]
        aside = reason if (guilty or put is not None) and not complete else None
        came.append((key, True, complete, free, aside, lost))
        otherwise += complete or put is not None or lost >= q.lost_limit
        if free:
            begun = (task, token, q.node, epoch, None, q.now, q.batch, q.incarnation, True, lost)
            kept = row[-3:] if row else ()  # when it was set aside, and what failed before
            q.tx.write("claim", (q.date, key), Claim(*begun, *kept))
        elif guilty:
            closed = before._replace(open=False, owners_lost=lost, error=reason, set_aside_at=q.now)
            q.tx.write("claim", (q.date, key), closed)
            q.tx.write("set_aside", key, (task, q.batch, q.date, lost, reason))
    _count(q, otherwise=otherwise)
    gone = [(key, False, None, None, None, None) for key in _refused(q, came)]
    others = [row for row in came if not row[3] or row[-1]]
    return Result(rows("task_key held complete begun set_aside lost", [*others, *gone]))


def _refused(q: Asked, held: Iterable[tuple[Any, ...]]) -> list[bytes]:
    """The keys of those whose fence did not hold."""
    return sorted(set(keys(q.task_keys)) - {key for key, *_ in held})


def _count(q: Asked, *, completed: int = 0, otherwise: int = 0) -> None:
    """Adds to this incarnation's part in a run."""
    if completed or otherwise:
        key = (q.batch_key, q.date, q.incarnation)
        part = q.tx.row("batch_part", key) or Part(q.node)
        counted = (part.completed + completed, part.otherwise + otherwise)
        q.tx.write("batch_part", key, part._replace(completed=counted[0], otherwise=counted[1]))


@statement
def record_completions(q: Asked) -> Any:
    held = yield from _fenced(q)
    done = []
    for key, task, token, epoch in held:
        fresh = q.tx.row("audit", (q.date, key)) is None
        if fresh:
            q.tx.write("audit", (q.date, key), (task, token, q.node, epoch, q.now, q.batch))
        done.append((key, fresh))
    once = q.keeps("what was complete before is not counted")
    _count(q, completed=sum(fresh or not once for _, fresh in done))
    others = [(key, True) for key, fresh in done if not fresh]
    return Result(rows("task_key held", [*others, *((key, False) for key in _refused(q, done))]))


@quick
def write_audit(q: Asked) -> Result:
    written = 0
    for key, task, token, epoch in zip(
        keys(q.task_keys), texts(q.task_ids), numbers(q.token_ids), numbers(q.epochs), strict=True
    ):
        if q.tx.row("audit", (q.date, key)) is None:
            q.tx.write("audit", (q.date, key), (task, token, q.node, epoch, q.now, None))
            written += 1
    return Result((), written)


@quick
def read_audit(q: Asked) -> Result:
    entries = [
        (d, *row[:4], moment(row[4]), row[5])
        for (d, _), row in q.tx.view().audit.items()
        if d == q.date
    ]
    names = "date task_id token_id node epoch completed_at batch"
    return Result(rows(names, sorted(entries, key=lambda e: (e[5], e[1], e[6] or ""))))


@quick
def end_claims(q: Asked) -> Result:
    ended = given_up = 0
    for key, error, epoch in zip(keys(q.task_keys), q.errors, numbers(q.epochs), strict=True):
        row = q.tx.row("claim", (q.date, key))
        if row is not None and row.epoch == epoch:
            row = row._replace(error=error, open=False)
            q.tx.write("claim", (q.date, key), row if error is None else _failed(row, error))
            ended += 1
            given_up += error is not None
    _count(q, otherwise=given_up)
    return Result(rows("ended", [(ended,)]))


def _failed(row: Claim, error: str) -> Claim:
    return row._replace(failures=row.failures + 1, last_error=error)


@quick
def note_failure(q: Asked) -> Result:
    row = q.tx.row("claim", (q.date, q.task_key))
    if row is None or row.epoch != q.epoch:
        return Result()
    q.tx.write("claim", (q.date, q.task_key), _failed(row, q.error))
    return Result((), 1)


@quick
def forget_failures(q: Asked) -> Result:
    forgotten = 0
    for key in keys(q.task_keys):
        row = q.tx.row("claim", (q.date, key))
        if row is not None and row.error is not None:
            q.tx.write("claim", (q.date, key), row._replace(error=None))
            forgotten += 1
    _count(q, otherwise=-forgotten)
    return Result((), int(forgotten > 0))


@quick
def read_progress(q: Asked) -> Result:
    view, found = q.tx.view(), []
    for key in keys(q.task_keys):
        done, begun = view.audit.get((q.date, key)), view.claim.get((q.date, key))
        if done is not None:
            found.append((key, done[2], None, None))
        elif begun is not None and begun.error is not None:
            found.append((key, begun.node, begun.error, moment(begun.claimed_at)))
    return Result(rows("task_key node error claimed_at", found))


@quick
def read_set_aside(q: Asked) -> Result:
    view = q.tx.view()
    found = []
    for key in keys(q.task_keys):
        row = view.set_aside.get(key)
        if row is not None and (q.date, key) not in view.audit:
            claim = view.claim.get((row[2], key))
            found.append((key, claim.node if claim else "", row[4], moment(0)))
    return Result(rows("task_key node error claimed_at", found))


# == batches and dates =============================================================================


def _today(q: Asked) -> dt.date:
    assert q.tx.view().cluster.time_zone == "UTC"
    return moment(q.now).date()


@quick
def read_date(q: Asked) -> Result:
    return Result(rows("date", [(_today(q),)]))


@statement
def lock_batch(q: Asked) -> Any:
    yield Locked(("advisory", q.lock))
    return Result(rows("pg_advisory_xact_lock", [("",)]))


@quick
def find_complete(q: Asked) -> Result:
    view = q.tx.view()
    date = q.date or q.default_date or _today(q)
    row = view.batch.get((q.batch_key, date))
    opened = any(key == q.batch_key and not one.finished for (key, _), one in view.batch.items())
    parts = [
        part for (key, day, _), part in view.batch_part.items() if (key, day) == (q.batch_key, date)
    ]
    if (
        row is None
        or not row.finished
        or row.ids_key != q.ids_key
        or row.mixed
        or (q.date is None and opened)
        or not parts
        or sum(part.completed for part in parts) < q.total
    ):
        return Result()
    complete = [
        key
        for (day, key), done in view.audit.items()
        if day == date and done[5] == q.name and q.low < key < q.high
    ]
    ends = sum(int.from_bytes(key[-4:], "big") for key in complete)
    return Result(rows("date tasks ends", [(date, len(complete), ends)]))


@quick
def begin_batch(q: Asked) -> Result:
    fresh = q.default_date or _today(q)
    dates = (
        date
        for (key, date), row in q.tx.view().batch.items()
        if key == q.batch_key and not row.finished
    )
    date = q.date or max(dates, default=None) or fresh
    row = q.tx.row("batch", (q.batch_key, date))
    begun = Batch(q.name, q.total, moment(q.now), q.node, False, q.ids_key)
    is_stream = q.total is None
    if row is None:
        empty = all(day != date for day, _ in q.tx.view().audit)
        row = begun._replace(clean=q.name is not None or empty)
    else:
        mixed = row.mixed or (row.finished if is_stream else row.ids_key != q.ids_key)
        if row.finished:
            kept = {"name": row.name, "before_key": row.before_key}
            row = begun._replace(clean=False, **kept)
        elif not is_stream:
            row = row._replace(total=q.total, ids_key=q.ids_key)
        row = row._replace(mixed=mixed)
    q.tx.write("batch", (q.batch_key, date), row)
    otherwise = (
        part.otherwise
        for (key, day, _), part in q.tx.view().batch_part.items()
        if (key, day) == (q.batch_key, date)
    )
    clean = bool(row.clean) and not any(otherwise)
    opened = (date, row.started_at, row.started_by, q.date or fresh, moment(q.now))
    return Result(rows("date started_at started_by fresh at clean", [(*opened, clean)]), 1)


@quick
def advance_batch(q: Asked) -> Result:
    row = q.tx.row("batch", (q.batch_key, q.date))
    moved = (
        row is not None and row.ids_key != q.ids_key and (row.ids_key == q.before_key or q.anyhow)
    )
    if moved:
        mixed = row.mixed or (
            row.ids_key != q.before_key and q.keeps("who works elsewhere says so before")
        )
        place = {"total": q.taken, "ids_key": q.ids_key, "before_key": q.before_key}
        row = row._replace(**place, finished=False, mixed=mixed)
        q.tx.write("batch", (q.batch_key, q.date), row)
        if q.channel is not None:
            q.tx.notices.append("batch")
    there = row is not None and row.ids_key == q.ids_key
    key = (q.batch_key, q.date, q.incarnation)
    part = q.tx.row("batch_part", key) or Part(q.node)
    q.tx.write("batch_part", key, part._replace(ids_key=q.ids_key, taken=q.taken))
    told = "" if moved and q.channel is not None else None
    return Result(rows("there pg_notify", [(there, told)]))


@quick
def finish_batch(q: Asked) -> Result:
    row = q.tx.row("batch", (q.batch_key, q.date))
    if row is None or row.finished or row.started_at != q.started_at:
        return Result()
    mixed = row.mixed or row.ids_key != q.ids_key
    q.tx.write("batch", (q.batch_key, q.date), row._replace(finished=True, mixed=mixed))
    if q.channel is not None:
        q.tx.notices.append("batch")
    return Result(rows("pg_notify", [("" if q.channel is not None else None,)]))


@quick
def read_parts(q: Asked) -> Result:
    view = q.tx.view()
    parts = [
        part
        for (key, date, _), part in view.batch_part.items()
        if (key, date) == (q.batch_key, q.date)
    ]
    row = view.batch.get((q.batch_key, q.date))
    finished = row is not None and row.finished and row.started_at == q.started_at
    others = any(
        key == q.batch_key and date != q.date and not other.finished
        for (key, date), other in view.batch.items()
    )
    uncounted = any(node.said_by != node.incarnation for node in view.node.values())
    counted = (sum(part.completed for part in parts), sum(part.otherwise for part in parts))
    there = row is not None and row.ids_key == q.ids_key
    moved_on = row is not None and not there and row.before_key == q.ids_key
    other_ids = row is None or row.mixed or not (there or moved_on)
    told = (*counted, finished, others, other_ids, uncounted, moved_on)
    names = "completed otherwise finished other_dates other_ids uncounted moved_on"
    return Result(rows(names, [told]))


def _runs(node: Node, run: dict[str, str | None]) -> bool:
    """Whether it says of itself that it runs that."""
    return node.said_by == node.incarnation and run in (node.runs or ())


@quick
def find_dates(q: Asked) -> Result:
    view, found = q.tx.view(), set()
    runs = {
        date for (key, date), row in view.batch.items() if key == q.batch_key and not row.finished
    }
    for date in runs | {q.date} if runs - {q.date} else ():
        for key, number in zip(keys(q.task_keys), numbers(q.token_ids), strict=True):
            claim, token = view.claim.get((date, key)), view.token.get(number)
            names = [
                node.name
                for node in view.node.values()
                if token
                and node.incarnation == token.incarnation
                and not _runs(node, json.loads(q.this_run)[0])
            ]
            if claim and names and claim.incarnation == token.incarnation:
                found.add((*names, date))
            says = {"kind": "batch", "name": q.name, "date": str(date)}
            if date != q.date and q.name is not None:
                found |= {(name, date) for name in names if _runs(view.node[name], says)}
    return Result(rows("node date", sorted(found)))


@quick
def find_strays(q: Asked) -> Result:
    view, found = q.tx.view(), set()
    for number in numbers(q.token_ids):
        token = view.token.get(number)
        for node in view.node.values() if token else ():
            part = view.batch_part.get((q.batch_key, q.date, node.incarnation))
            if (
                node.incarnation == token.incarnation
                and _runs(node, json.loads(q.this_run)[0])
                and part is not None
                and part.ids_key not in (None, q.ids_key)
                and part.taken >= q.taken
            ):
                found.add((node.name,))
    return Result(rows("node", sorted(found)))
