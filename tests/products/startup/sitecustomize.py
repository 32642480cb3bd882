"""Python imports this at the start of every program that the tests start: it gives settings of
`CoordinationConfig` other defaults, those that a product needs."""

from __future__ import annotations

import importlib.util
import json
import os
import sys
from types import ModuleType

_MODULE = "jobsync_async.config"


class _Once:
    """Finds that module as others do, and gives the defaults when it is imported."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        if name != _MODULE or self not in sys.meta_path:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            run = spec.loader.exec_module

            def run_and_give(module: ModuleType) -> None:
                run(module)
                give_defaults(module)

            spec.loader.exec_module = run_and_give  # type: ignore[method-assign]
        return spec


def give_defaults(module: ModuleType) -> None:
    """What `JOBSYNC_TEST_DEFAULTS` says."""
    settings = module.CoordinationConfig
    for name, value in json.loads(os.environ["JOBSYNC_TEST_DEFAULTS"]).items():
        setattr(settings, name, value)
        settings.__dataclass_fields__[name].default = value
        settings.__init__.__wrapped__.__kwdefaults__[name] = value


if "JOBSYNC_TEST_DEFAULTS" in os.environ:
    sys.meta_path.insert(0, _Once())  # type: ignore[arg-type]
