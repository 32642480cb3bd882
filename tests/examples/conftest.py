"""Loads the examples, which are programs and no package."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

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


@pytest.fixture
def start_example(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The command line that runs an example."""
    return lambda name, *arguments: [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]
