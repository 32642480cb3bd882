"""Search every state of `ownership.pml` with SPIN, and show that without each of its rules it finds
a violation.

Run ``python docs/model/check.py``; it needs ``spin`` and a C compiler. ``--quick`` leaves out the
large searches with all rules. Exits with 1 when a search finds what it should not, or does not find
what it should.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

MODEL = Path(__file__).with_name("ownership.pml")
SMALL, LARGE = ("SAME_NAME",), ("LEADER_APART", "EITHER_LEADS")
ARRANGEMENTS = (*SMALL, *LARGE)
MIXED = "JUDGED_BY_ITS_OWN_TIMEOUT"
"""The rule that matters only where timeouts differ."""
DEPTH = {"SAME_NAME": 200_000}
DEEP = 8_000_000


class Verdict(NamedTuple):
    """What a search said. `violated` is the assertion that failed, None for none; `whole`: every
    state was seen."""

    violated: str | None
    whole: bool
    states: int
    seconds: float


def compiler() -> str | None:
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def missing() -> str | None:
    """What keeps the check from running here, None for nothing."""
    if shutil.which("spin") is None:
        return "there is no spin: apt-get install spin"
    return None if compiler() else "there is no C compiler"


def rules() -> list[str]:
    """The rules that can be switched off."""
    return re.findall(r"\*/\n#ifdef NO_(\w+)\n#define", MODEL.read_text("utf-8"), re.MULTILINE)


def search(
    arrangement: str, without: str | None = None, *, mixed: bool = False, limit_sec: float = 900
) -> Verdict:
    """Search one arrangement, to the first violation or to the end; `mixed`: one worker has a
    longer timeout. Raises RuntimeError when SPIN does not run through."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        defines = [
            f"-D{arrangement}",
            *([f"-DNO_{without}"] if without else []),
            *(["-DMIXED"] if mixed else []),
        ]
        _run(["spin", "-a", *defines, str(MODEL)], folder, 60)
        # Compiling takes longer than a small search.
        fast = "-O2" if arrangement in LARGE and without is None else "-O1"
        options = [fast, "-w", "-DSAFETY", "-DNOFAIR", "-DCOLLAPSE", "-DMEMLIM=6000"]
        _run([str(compiler()), *options, "-o", "pan", "pan.c"], folder, 120)
        depth = DEPTH.get(arrangement, DEEP)
        said = _run([os.path.join(folder, "pan"), f"-m{depth}", "-w24"], folder, limit_sec)
    found = re.search(r"assertion violated (.*) \(at depth", said)
    stored = re.search(r"^\s*([0-9.e+]+) states, stored", said, re.MULTILINE)
    errors = re.search(r"errors: (\d+)", said)
    if stored is None or errors is None or (errors[1] != "0" and found is None):
        raise RuntimeError(f"SPIN did not run through:\n{said}")
    whole = (
        "Search not completed" not in said
        and "search depth too small" not in said
        and "memory limit" not in said
    )
    return Verdict(
        found[1] if found else None, whole, int(float(stored[1])), time.monotonic() - begun
    )


def _run(command: list[str], folder: str, limit_sec: float) -> str:
    done = subprocess.run(  # noqa: S603 - our own model
        command, cwd=folder, capture_output=True, text=True, check=False, timeout=limit_sec
    )
    if done.returncode != 0:
        raise RuntimeError(f"{command[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def promise(violated: str | None) -> str:
    """Which promise an assertion of the model is."""
    if violated is None:
        return "nothing is violated"
    if "f==2" in violated:
        return "a holder while another's fence is locked"
    if "lease" in violated or "claim" in violated or "own" in violated:
        return "two holders"
    if "committed" in violated:
        return "two owners commit under one epoch"
    return (
        "a commit by another than the owner"
        if "f_right" in violated
        else "another than the leader writes"
    )


def with_all_rules(arrangement: str, *, mixed: bool, limit_sec: float = 900) -> bool:
    """Print the line of one search with all rules; whether it is as it must be."""
    verdict = search(arrangement, mixed=mixed, limit_sec=limit_sec)
    held = verdict.violated is None and verdict.whole
    name = f"all rules, {arrangement}{', mixed timeouts' if mixed else ''}"
    _line(name, verdict, "holds in every state" if held else promise(verdict.violated))
    return held


def without_rule(rule: str) -> bool:
    """Print the line of the search without one rule; whether it found a violation."""
    # The smallest; some rules matter only where there are two names.
    verdict = search("SAME_NAME", rule, mixed=rule == MIXED)
    if verdict.violated is None:
        verdict = search("EITHER_LEADS", rule)
    _line(f"without {rule}", verdict, promise(verdict.violated))
    return verdict.violated is not None


def _line(what: str, verdict: Verdict, said: str) -> None:
    print(f"{what:<44} {verdict.states:>10,} states {verdict.seconds:>6.1f} s  {said}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="leave out the large searches with all rules"
    )
    options = parser.parse_args()
    if (reason := missing()) is not None:
        print(reason, file=sys.stderr)
        return 1
    arrangements = SMALL if options.quick else ARRANGEMENTS
    right = [
        with_all_rules(arrangement, mixed=mixed)
        for arrangement in arrangements
        for mixed in (False, True)
    ]
    right += [without_rule(rule) for rule in rules()]
    print("as it must be" if all(right) else "NOT as it must be")
    return 0 if all(right) else 1


if __name__ == "__main__":
    sys.exit(main())
