"""How soon every token is owned again after a worker came, left or was killed, with the default
settings of each side; and whether two ever owned one token."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.results import Result
from benchmarks.sides import Side, server
from benchmarks.watched import TOTAL, Took, Watched, events

TITLES = {  # and what ours may take at most, and how many times better it must be
    "join": ("a worker joins, 3 to 4", 0.25, 50),
    "leave": ("graceful leave, 4 to 3", 0.1, 50),
    "follower": ("a follower is killed, 4 to 3", 0.5, None),
    "leader": ("the leader is killed, 4 to 3", 0.5, None),
}
ELSEWHERE = " on another host"
_LEASES_SEC = 16.0
# in which each worker comes to its moment in the leader's interval, and beats are soon seen
_CALM_SEC = 12.5


async def of_ours(
    dsn: str,
    side: Side,
    rounds: int,
    victims: Sequence[str],
    *,
    elsewhere: bool = False,
    total: int = TOTAL,
) -> Took:
    """Ours; `elsewhere`: each worker as if on a host of its own, so that nobody sees a death before
    the lease is over."""
    what = "worker_elsewhere" if elsewhere else "worker"
    appname = f"reaction_{total}_{what}_"
    command = side.command(what, appname, total)
    async with Watched(command, {**side.environment, **server(dsn)}, total) as watched:
        return await events(watched, rounds, victims, calm_sec=_CALM_SEC if elsewhere else 0.0)


async def measure(dsn: str, sides: Sequence[Side], quick: bool) -> list[Result]:
    """Ours, several rounds; theirs, which takes minutes for each round, only in a whole run."""
    ours_side, theirs_side = sides
    ours = await of_ours(
        dsn, ours_side, 3 if quick else 10, ("follower", "leader") * (1 if quick else 3)
    )
    theirs, apart = Took(), Took()
    if not quick:
        apart = await of_ours(dsn, ours_side, 0, ("follower", "leader"), elsewhere=True)
        command = theirs_side.command("worker", "reaction_theirs_", TOTAL)
        async with Watched(command, {**theirs_side.environment, **server(dsn)}) as watched:
            theirs = await events(watched, 2, ("follower", "leader"))
    results = []
    for event, (title, goal, times) in TITLES.items():
        results.append(
            Result(
                title, "s", ours.reaction[event], goal, theirs.reaction.get(event, ()), times=times
            )
        )
        if event in apart.reaction:
            results.append(
                Result(
                    title + ELSEWHERE,
                    "s",
                    apart.reaction[event],
                    _LEASES_SEC,
                    theirs.reaction[event],
                    times=1,
                )
            )
    for event, (title, _, _) in TITLES.items():
        results.append(
            Result(
                f"  a token unowned: {title}",
                "s",
                ours.unowned[event],
                None,
                theirs.unowned.get(event, ()),
            )
        )
        if event in apart.unowned:
            name = f"  a token unowned: {title}{ELSEWHERE}"
            results.append(Result(name, "s", apart.unowned[event], None, theirs.unowned[event]))
    for event, (title, _, _) in TITLES.items():
        shared = ours.shared[event] + apart.shared.get(event, [])
        results.append(
            Result(
                f"  two owners of a token: {title}", "s", shared, 0, theirs.shared.get(event, ())
            )
        )
    in_all = [ours.shared_in_all + apart.shared_in_all]
    results.append(
        Result(
            "two owners, all tokens together",
            "s",
            in_all,
            0,
            [theirs.shared_in_all] if theirs.reaction else (),
        )
    )
    return results
