"""Processes of ours that are told what to do when they are started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from typing import IO, TYPE_CHECKING, ClassVar

import anyio
from anyio.abc import Process

if TYPE_CHECKING:
    from typing_extensions import Self


@dataclass(frozen=True)
class StartOrders:
    """What a process is told: fields that JSON can hold, in an environment variable. An
    environment, unlike arguments, is not for everybody to see.

    Attributes:
        VARIABLE: the variable's name.
    """

    VARIABLE: ClassVar[str]

    def to_environment(self) -> dict[str, str]:
        return {self.VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls) -> Self:
        return cls(**json.loads(os.environ[cls.VARIABLE]))


async def start_process(
    module: str, orders: StartOrders, *, stdout: int | IO[bytes], stderr: IO[bytes] | None
) -> Process:
    """Run a module of ours. Its standard input is a pipe, which is closed when this process
    ends."""
    return await anyio.open_process(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, **orders.to_environment()},
        # Ctrl-C at the terminal is for whoever started it, and ends it in turn.
        start_new_session=True,
    )
