"""Loads the examples, which are programs and no package."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest

from tests.processes import short_lived

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def example() -> Callable[[str], ModuleType]:
    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


WORK = "asyncio.sleep(0.1)  # the work"


@pytest.fixture
def start_example(tmp_path: Path) -> Callable[..., list[str]]:
    """The command line that runs an example.

    Its stand-in for work, which is there for people to watch, takes no time.
    """

    def command(name: str, *arguments: str) -> list[str]:
        program = (EXAMPLES / f"{name}.py").read_text("utf-8")
        assert (WORK in program) == (name == "batch")
        copy = tmp_path / f"{name}.py"
        copy.write_text(program.replace(WORK, "asyncio.sleep(0)"), "utf-8")
        return [sys.executable, str(copy), *arguments]

    return command


@pytest.fixture
def spawn(
    start_example: Callable[..., list[str]], dsn: str
) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts an example as a process, which is killed when the test ends, or after 30 s, if it
    still runs then."""
    with short_lived() as start:
        yield lambda name, *arguments: start(
            start_example(name, *arguments), env={**os.environ, "JOBSYNC_DSN": dsn}
        )
