"""Every error can be pickled and copied, with its attributes: to another process, or into a test's
report."""

from __future__ import annotations

import copy
import inspect
import pickle
from collections.abc import Iterator

import pytest

from jobsync_async import Job, OwnershipLost, errors
from jobsync_async.testing import TwoOwners


def kinds(
    kind: type[errors.JobSyncError] = errors.JobSyncError,
) -> Iterator[type[errors.JobSyncError]]:
    yield kind
    for derived in kind.__subclasses__():
        yield from kinds(derived)


_VALUES = {"message": "what happened", "node": "a", "holder": "host 1", "node_patterns": ("a", "%")}


def made(kind: type[errors.JobSyncError]) -> errors.JobSyncError:
    """One with a value for each argument."""
    if "__init__" not in vars(kind) and kind.__init__ is Exception.__init__:
        return kind("what happened", 7)
    values = {}
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name != "self" and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        ):
            values[name] = _VALUES.get(name, f"of {name}")
    return kind(**values) if values else kind("what happened", 7)


@pytest.mark.parametrize("kind", dict.fromkeys(kinds()), ids=lambda kind: kind.__name__)
def test_an_error_survives_pickling_and_copying(kind):
    error = made(kind)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        for again in (
            pickle.loads(pickle.dumps(error, protocol)),
            copy.copy(error),
            copy.deepcopy(error),
        ):
            assert type(again) is kind
            assert str(again) == str(error)
            assert again.args == error.args
            assert vars(again) == vars(error)


async def test_what_a_claim_raises_survives_it_too():
    async with Job("a") as job:
        async with job.claim("x") as claim:
            pass
        with pytest.raises(OwnershipLost) as caught:
            claim.check()
    again = pickle.loads(pickle.dumps(caught.value))
    assert (again.task_id, again.token_id, again.epoch) == ("x", claim.token_id, 1)
    assert str(again) == str(caught.value)


def test_the_test_kits_error_survives_it():
    error = TwoOwners(7, ("a", "b"))
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.what, again.owners) == (str(error), 7, ("a", "b"))
