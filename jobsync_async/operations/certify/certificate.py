"""What is to be certified, and what was found."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jobsync_async import __version__
from jobsync_async.config import CoordinationConfig
from jobsync_async.errors import ConfigError
from jobsync_async.operations.certify.figures import Statement
from jobsync_async.operations.certify.verdicts import Status, Verdict, worst

PREFIX = "certify_"
"""What the names of all tables begin with that a certification uses."""


@dataclass(frozen=True)
class Wish:
    """What is to be certified.

    Attributes:
        config: how to reach the server, the schema, and the times of the workers. Its `notify` is
            False to certify polling.
        prefix: of tables that an administrator made; None for tables of its own.
        quick: short times and few samples.
        workers: how many there are to be; None where that is not said.

    Raises:
        ConfigError: the prefix could be that of a real cluster.
    """

    config: CoordinationConfig
    prefix: str | None = None
    quick: bool = False
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.prefix is not None and not self.prefix.startswith(PREFIX):
            raise ConfigError(
                f"the prefix must begin with {PREFIX!r}, so that it is no real cluster's; got "
                f"{self.prefix!r}"
            )


@dataclass
class Certificate:
    """What was found.

    Attributes:
        server: where it is, as what role, and its version.
        polling: whether workers were tried that do not listen.
        interval_sec, timeout_sec: the times that they had.
        seconds: how long it took.
        checks: a verdict for each thing that was looked at.
        statements: those that workers sent.
    """

    server: str = ""
    polling: bool = False
    interval_sec: float = 0
    timeout_sec: float = 0
    seconds: float = 0
    checks: list[Verdict] = field(default_factory=list)
    statements: list[Statement] = field(default_factory=list)

    @property
    def status(self) -> Status:
        return worst(self.checks)

    def plain(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "library": __version__,
            "server": self.server,
            "polling": self.polling,
            "heartbeat_interval_sec": self.interval_sec,
            "heartbeat_timeout_sec": self.timeout_sec,
            "seconds": round(self.seconds, 1),
            "status": self.status,
            "checks": [one.plain() for one in self.checks],
            "statements": [one.plain() for one in self.statements],
        }
