"""The judge of the fault tests finds what must never be: each history here is wrong in one way, or
in none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.faults.history import (
    Act,
    Commit,
    History,
    Pause,
    Stay,
    TokenState,
    acts,
    judge,
    line,
    parse,
    read,
)


def good() -> History:
    """Worker a is stopped between a check and an act, and replaced by b, who hands on to c."""
    return History(
        stays=[
            Stay("a", 1, 5, began=0.0, held_until=10.0),
            Stay("b", 1, 6, began=20.0, held_until=30.0, ended=30.0),
            Stay("c", 1, 7, began=30.0, held_until=40.0),
            Stay("a", 2, 5, began=0.0, held_until=40.0),
        ],
        acts=[
            Act("a", 1, 5, 1.0, 1.1),
            Act("a", 1, 5, 10.0, 25.0),
            Act("b", 1, 6, 21.0, 21.1),
            Act("c", 1, 7, 31.0, 31.1),
        ],
        commits=[Commit(1, 1, 5, "a", 5), Commit(1, 2, 6, "b", 6), Commit(1, 3, 7, "c", 7)],
        acknowledged=[Commit(1, 1, 5, "a", 5), Commit(1, 3, 7, "c", 7)],
        tokens=[
            TokenState(1, "A", 5),
            TokenState(1, None, 6),
            TokenState(1, "B", 7),
            TokenState(1, "B", 7),
        ],
        pauses=[Pause("a", 10.05, 24.9)],
    )


def test_a_stopped_process_between_a_check_and_an_act_is_reported_apart():
    report = judge(good())
    assert not report.violations
    assert report.unfenced_overlaps == [Act("a", 1, 5, 10.0, 25.0)]


def change(part: str, index: int, **values: object) -> History:
    history = good()
    rows = getattr(history, part)
    row = rows[index]
    rows[index] = replace(row, **values) if isinstance(row, Stay) else row._replace(**values)
    return history


def without(part: str, index: int) -> History:
    history = good()
    del getattr(history, part)[index]
    return history


@pytest.mark.parametrize(
    ("history", "found"),
    [
        (change("stays", 0, held_until=20.1), "two at once"),
        (change("stays", 1, began=9.9), "two at once"),
        (change("stays", 1, held_until=30.01), "two at once"),
        (change("stays", 2, began=25.0, held_until=26.0), "two at once"),
        (change("stays", 2, epoch=6), "two workers had one epoch"),
        (change("stays", 1, epoch=4), "epochs went back"),
        (change("acts", 1, done=20.1, checked=20.05), "nothing had stopped it"),
        (change("pauses", 0, worker="b"), "nothing had stopped it"),
        (change("pauses", 0, began=26.0, ended=27.0), "nothing had stopped it"),
        (without("pauses", 0), "nothing had stopped it"),
        (change("commits", 0, epoch_at_commit=6), "committed by a former owner"),
        (change("commits", 0, epoch_at_commit=None), "committed by a former owner"),
        (
            change("commits", 2, epoch=5, epoch_at_commit=5, worker="a"),
            "committed out of epoch order",
        ),
        (change("commits", 1, epoch=5, epoch_at_commit=5), "two workers committed in one epoch"),
        (change("commits", 2, n=4), "missing or double"),
        (without("commits", 0), "missing or double"),
        (change("commits", 2, worker="a"), "acknowledged and not there"),
        (change("acknowledged", 0, n=9), "acknowledged and not there"),
        (change("tokens", 2, epoch=6), "did not rise with its owner"),
        (change("tokens", 3, epoch=6), "did not rise with its owner"),
        (change("tokens", 1, epoch=5), "did not rise with its owner"),
    ],
)
def test_it_is_found(history: History, found: str):
    assert any(found in violation for violation in judge(history).violations)


def test_a_stay_lasts_until_the_last_check_that_said_yes_or_the_end_of_work_under_a_lease(tmp_path):
    log = (
        b'["begin", 1.0, 7, 3]\n["end", 9.0, 7, 3, false]\n'
        b'["begin", 11.0, 8, 3]\n["end", 12.5, 8, 3, true]\n'
    )
    effects = tmp_path / "effects"
    effects.write_bytes(
        b"".join(
            line(Act("a", *act)) for act in ((7, 3, 2.0, 2.1), (7, 3, 5.0, 8.0), (8, 3, 11.5, 11.6))
        )
    )

    class Nothing:
        def execute(self, query: str) -> list[tuple]:
            return []

    history = read([("a", event) for event in parse(log)], effects, Nothing())  # type: ignore[arg-type]
    assert [(stay.task, stay.began, stay.held_until, stay.ended) for stay in history.stays] == [
        (7, 1.0, 5.0, 9.0),
        (8, 11.0, 12.5, 12.5),
    ]
    assert history.acts[1] == Act("a", 7, 3, 5.0, 8.0)


@pytest.mark.parametrize("after", [b"", line(Act("b", 1, 2, 9.0, 9.5))])
def test_a_line_that_is_cut_off_says_nothing(tmp_path, after):
    whole, cut = line(Act("a", 7, 31, 2.0, 2.1)), line(Act("a", 8, 31, 3.0, 3.1))
    for length in range(len(cut)):
        (tmp_path / "effects").write_bytes(whole + cut[:length] + after)
        assert [act.task for act in acts(tmp_path / "effects")] == ([7, 1] if after else [7])


def test_moves_are_counted_by_owner():
    states = [("A", 1), ("A", 1), (None, 2), ("A", 3), ("B", 4), ("A", 5)]
    assert History(tokens=[TokenState(1, who, epoch) for who, epoch in states]).moves() == 2
