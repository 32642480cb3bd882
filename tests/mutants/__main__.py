"""Changes lines that safety rests on, one at a time, and looks that a test goes red.

    uv run python -m tests.mutants                # all of them
    uv run python -m tests.mutants --quick        # those that each run of CI tries
    uv run python -m tests.mutants --only fence   # those whose name or file has this in it
    uv run python -m tests.mutants --only fence -- tests/integration   # with other tests

The tests are run without any mutant first. Then a line is printed for each mutant. The exit status
is 1 when one survives that is not explained, is explained but killed, or is not to be found.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import SimpleQueue

from jobsync_async.embedded import EmbeddedPostgres
from tests.mutants.catalogue import MUTANTS
from tests.mutants.workshop import Mutant, Verdict, Workshop


def main() -> int:
    """Judge the mutants that are asked for; 0 when all is as it should be."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="only those that each run of CI tries")
    parser.add_argument("--only", default="", help="only those whose name or file has this in it")
    parser.add_argument(
        "--jobs", type=int, default=2, help="how many at a time; each has a server of its own"
    )
    parser.add_argument("tests", nargs="*", help="run these instead of each one's own")
    options = parser.parse_args()
    wanted = [
        m
        for m in MUTANTS
        if options.only in f"{m.name} {m.file}" and (m.quick or not options.quick)
    ]
    if not wanted:
        parser.error("no mutant is called so")
    wrong = 0
    with ExitStack() as stack:
        free: SimpleQueue[Workshop] = SimpleQueue()
        for _ in range(min(options.jobs, len(wanted))):
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mutants-")))
            free.put(Workshop(folder, stack.enter_context(EmbeddedPostgres()).dsn))

        def judge(mutant: Mutant) -> Verdict:
            workshop = free.get()
            try:
                return workshop.judge(mutant, tuple(options.tests))
            finally:
                free.put(workshop)

        first = free.get()
        unchanged = first.passes(
            options.tests or {test for mutant in wanted for test in mutant.tests}
        )
        free.put(first)
        if unchanged.what != "green":
            print(f"the tests are red without any mutant:\n{unchanged.told}")
            return 1
        with ThreadPoolExecutor(options.jobs) as pool:
            for mutant, verdict in zip(wanted, pool.map(judge, wanted), strict=True):
                expected = "survived" if mutant.redundant else "killed"
                right = verdict.what == expected
                wrong += not right
                sign = "ok " if right else "BAD"
                print(
                    f"{sign} {verdict.what:8} {verdict.seconds:5.1f} s  {mutant.file}: "
                    f"{mutant.name}: {verdict.told}",
                    flush=True,
                )
    print(f"{len(wanted)} mutants, {wrong} not as they should be")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
