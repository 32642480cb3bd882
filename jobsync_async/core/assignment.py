"""The plan: which worker is to have each token. Pure.

* A pinned token goes to a worker that its patterns allow, or to nobody.
* A token is given to one worker at most.
* Without pins, or with pins that name one worker each, shares follow the weights to within one
  token. No plan that keeps to these shares moves fewer tokens.
* The same inputs give the same plan, and planning again changes nothing.

Every set of tokens that may go to the same workers is shared out among them by *water-filling*.
The workers are vessels as wide as their weights, filled already by what other pins gave them. The
set is poured in, and makes them as level as they can be. Pins to few workers are poured first,
tokens without a pin last. Fractions of a token are rounded so that fewest tokens move, at most one
token away from the exact share (the quota rule of apportionment methods).

Pins whose sets of workers overlap are balanced one set after the other. That is not always the
best balance that there is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from jobsync_async.core.patterns import eligible


class PlanNode(NamedTuple):
    """A worker that takes tokens. `weight` is its share relative to the others; where all weights
    are 0, all are equal."""

    name: str
    weight: float


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to change.

    Attributes:
        gains: who gets which tokens that it did not have; None for nobody. A worker may come twice,
            a token does not.
        unmatched: pinned tokens that no worker may have, with their patterns.
        loads: how many tokens each worker has in the end.
    """

    gains: list[tuple[str | None, Sequence[int]]]
    unmatched: dict[int, tuple[str, ...]]
    loads: dict[str, int]


def plan(
    nodes: Sequence[PlanNode], current: Sequence[str | None], pins: Mapping[int, tuple[str, ...]]
) -> Plan:
    """Share out the tokens.

    Args:
        nodes: the workers; their order decides ties.
        current: for each token the worker that has it; None, or a name that is not in `nodes`, is
            nobody.
        pins: for some tokens the patterns of workers' names that they are pinned to.

    Takes time in proportion to the tokens, and to the distinct lists of patterns times the workers.
    """
    weights = {node.name: node.weight for node in nodes}
    outcome = Plan([], {}, dict.fromkeys(weights, 0))
    for names, tokens in _by_eligible(pins, list(weights)):
        if names:
            where = [current[token] for token in tokens]
            _share_out(outcome, tokens, where, {name: weights[name] for name in names})
        else:
            outcome.unmatched.update((token, pins[token]) for token in tokens)
            freed = [token for token in tokens if current[token] in weights]
            if freed:
                outcome.gains.append((None, freed))
    if not pins:
        _share_out(outcome, range(len(current)), current, weights)
    elif len(pins) < len(current):
        free = [token for token in range(len(current)) if token not in pins]
        _share_out(outcome, free, [current[token] for token in free], weights)
    return outcome


def _by_eligible(
    pins: Mapping[int, tuple[str, ...]], names: list[str]
) -> list[tuple[tuple[str, ...], list[int]]]:
    """Pinned tokens in order, by the workers that may have them; the smallest sets of workers
    first."""
    by_patterns: dict[tuple[str, ...], list[int]] = {}
    for token in sorted(pins):
        by_patterns.setdefault(pins[token], []).append(token)
    groups: dict[tuple[str, ...], list[int]] = {}
    for patterns, tokens in by_patterns.items():
        groups.setdefault(tuple(eligible(patterns, names)), []).extend(tokens)
    return sorted(groups.items(), key=lambda group: (len(group[0]), group[0]))


def _share_out(
    outcome: Plan, tokens: Sequence[int], where: Sequence[str | None], weights: Mapping[str, float]
) -> None:
    """Add one set of tokens to the outcome: as level as can be on top of its loads, with fewest
    moves."""
    if not weights:
        return
    # Before the first distribution there is nothing to count.
    held = Counter(where if any(where) else ())
    quotas = _quotas(len(tokens), outcome.loads, weights, held)
    for name, quota in quotas.items():
        outcome.loads[name] += quota
    missing = {name: quota - held[name] for name, quota in quotas.items() if quota > held[name]}
    if not missing:
        return
    surplus = {name: held[name] - quota for name, quota in quotas.items() if held[name] > quota}
    all_move = sum(missing.values()) == len(tokens)
    movers = tokens if all_move else list(_movers(tokens, where, quotas, surplus))
    first = 0
    for name, count in missing.items():
        outcome.gains.append((name, movers[first : first + count]))
        first += count
    assert first == len(movers), "what is missing is what is too much elsewhere"


def _movers(
    tokens: Sequence[int],
    where: Sequence[str | None],
    quotas: Mapping[str, int],
    surplus: dict[str, int],
) -> Iterable[int]:
    """Tokens to move: those of nobody, and of each worker that has too many, as many as it has too
    many."""
    settled = quotas.keys() - surplus.keys()
    for token, name in zip(tokens, where, strict=True):
        if name in settled:
            continue
        if name not in quotas:
            yield token
        elif surplus[name]:  # type: ignore[index]  # None is no key of quotas
            surplus[name] -= 1  # type: ignore[index]
            yield token


def _quotas(
    total: int,
    loads: Mapping[str, int],
    weights: Mapping[str, float],
    held: Mapping[str | None, int],
) -> dict[str, int]:
    """How many of `total` tokens each worker gets."""
    if len(weights) == 1:  # as most pins have it
        return dict.fromkeys(weights, total)
    shares = _shares(total, loads, weights)
    quotas = {name: int(share) for name, share in shares.items()}
    rest = total - sum(quotas.values())
    # Only a share that is not whole is rounded up; first where a token can stay for it.
    fractions = [
        (held[name] <= quotas[name], quotas[name] - share, name)
        for name, share in shares.items()
        if share % 1
    ]
    for _, _, name in sorted(fractions, key=lambda entry: entry[:2])[:rest]:
        quotas[name] += 1
    return quotas


def _shares(
    total: int, loads: Mapping[str, int], weights: Mapping[str, float]
) -> dict[str, Fraction]:
    """Exact shares: water-filling by weight on top of the loads."""
    exact = {name: Fraction(weight) for name, weight in weights.items() if weight > 0}
    widths = exact or dict.fromkeys(weights, Fraction(1))
    heights = sorted((loads[name] / width, name) for name, width in widths.items())
    width_so_far, volume = Fraction(0), Fraction(total)
    level = Fraction(0)
    for index, (_, name) in enumerate(heights):
        width_so_far += widths[name]
        volume += loads[name]
        level = volume / width_so_far
        if index + 1 == len(heights) or level <= heights[index + 1][0]:
            break
    none = Fraction(0)
    return {
        name: max(none, level * widths[name] - loads[name]) if name in widths else none
        for name in weights
    }
