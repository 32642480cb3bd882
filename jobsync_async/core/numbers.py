"""Whether a setting is a number that can work. Pure.

* What is refused is refused with its name, what it may be, and what was given.
* True and False are no numbers, and neither are infinity and what is not a number.
"""

from __future__ import annotations

import math

from jobsync_async.errors import ConfigError


def check_whole(name: str, value: object, least: int, most: int) -> None:
    """Raise ConfigError for what is no whole number, or not between the two."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(
            f"{name} must be a whole number from {least:,} to {most:,}; got {value!r}"
        )


def check_seconds(name: str, value: object, *, zero: bool) -> None:
    """Raise ConfigError for what is no length of time; 0 may be one."""
    if not _is_length(value, zero=zero):
        raise ConfigError(
            f"{name} must be {'zero or ' if zero else ''}a positive number of seconds; got "
            f"{value!r}"
        )


def check_days(name: str, value: object) -> None:
    """Raise ConfigError for what is no length of time, or longer than PostgreSQL can count."""
    if not _is_length(value, zero=False) or value > MOST_DAYS:  # type: ignore[operator]
        raise ConfigError(
            f"{name} must be a positive number of days, at most {MOST_DAYS:,}, or None to keep "
            f"all; got {value!r}"
        )


MOST_DAYS = 100_000


def _is_length(value: object, *, zero: bool) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and math.isfinite(value)
        and (value > 0 or (zero and value == 0))
    )
