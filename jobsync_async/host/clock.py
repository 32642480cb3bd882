"""The clock that leases are measured with."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Seconds since some fixed moment, never set back. It should go on counting while the machine is
suspended: a laptop that wakes up must find that its leases are over."""


def _choose() -> Clock:
    if sys.platform == "linux":
        boottime = time.CLOCK_BOOTTIME
        return lambda: time.clock_gettime(boottime)
    # Here CLOCK_MONOTONIC_RAW counts suspend, and time.monotonic() does not.
    if sys.platform == "darwin":
        raw = time.CLOCK_MONOTONIC_RAW
        return lambda: time.clock_gettime(raw)
    return time.monotonic


lease_clock: Clock = _choose()
