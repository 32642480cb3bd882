"""Python imports this at the start of every program that the tests start: it gives settings of
`CoordinationConfig` other defaults, those that a product needs."""

from __future__ import annotations

import json
import os


def give_defaults() -> None:
    """What `JOBSYNC_TEST_DEFAULTS` says. Nothing where the library is not installed."""
    defaults = json.loads(os.environ.get("JOBSYNC_TEST_DEFAULTS", "{}"))
    if not defaults:
        return
    try:
        from jobsync_async.config import CoordinationConfig
    except ImportError:
        return
    for name, value in defaults.items():
        setattr(CoordinationConfig, name, value)
        CoordinationConfig.__dataclass_fields__[name].default = value
    CoordinationConfig.__init__.__wrapped__.__kwdefaults__.update(defaults)  # type: ignore[attr-defined]


give_defaults()
