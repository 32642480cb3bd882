"""Settings from environment variables, such as ``JOBSYNC_DSN``.

Each field of the settings has its variable: the prefix, and the field's name in capitals. The
field's type says how the text is read.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields
from functools import wraps
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from jobsync_async.errors import ConfigError

if TYPE_CHECKING:
    from typing_extensions import ParamSpec, Self

    _Given = ParamSpec("_Given")
_Made = TypeVar("_Made")

_BOOLS = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_EXPECTED: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
# A DSN says these, too: who gives one of the two by keyword does not mean the other's variable.
_PLACE = {"host", "port", "dbname", "user", "password"}
# With these begin variables of this library, and of its tests, that are no settings of a cluster.
NO_SETTINGS = ("JOBSYNC_ASYNC_", "JOBSYNC_EMBEDDED_", "JOBSYNC_TEST_")
# What Kubernetes puts into a pod for each Service. One named "jobsync" even sets JOBSYNC_PORT.
_OF_A_SERVICE = re.compile(r"SERVICE_(HOST|PORT)|PORT_\d+_|PORT=tcp:")
_ADVICE = (
    "; Kubernetes sets it for a Service of such a name, unless the pod's spec has "
    "enableServiceLinks: false"
)


def forgetful(make: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Let an error leave without the frames whose local variables are the password and the DSN:
    some loggers print those."""

    @wraps(make)
    def forgetting(*about: _Given.args, **settings: _Given.kwargs) -> _Made:
        try:
            return make(*about, **settings)
        except (ConfigError, TypeError) as error:
            refusal = error.with_traceback(None)
        del about
        settings.clear()
        raise refusal

    return forgetting


class FromEnvironment:
    """A dataclass of settings that variables can give."""

    @classmethod
    @forgetful
    def from_env(
        cls, prefix: str = "JOBSYNC_", environ: Mapping[str, str] | None = None, **settings: Any
    ) -> Self:
        """The settings that environment variables give: ``JOBSYNC_DSN`` gives `dsn`, and so on.

        An empty variable counts as not set. Does no I/O.

        Args:
            prefix: what the variables begin with. A variable that begins so and is none of them is
                refused.
            environ: the variables by name; None takes those of this process.
            settings: these win over variables. With `dsn`, the variables of `host`, `port`,
                `dbname`, `user` and `password` do not count; with one of these, that of `dsn` does
                not.

        Raises:
            ConfigError: a value, or a relation between two, cannot work, or a variable is unknown.
                The message names the variables.
        """
        names = {f"{prefix}{one.name.upper()}": one.name for one in fields(cls)}  # type: ignore[arg-type]
        kinds = get_type_hints(cls)
        given = _given(prefix, names, os.environ if environ is None else environ)
        unwanted = _replaced(settings)
        variables = {names[key]: key for key in given if names[key] not in unwanted}
        parsed = {name: _parsed(key, given[key], kinds[name]) for name, key in variables.items()}
        try:
            return cls(**parsed, **settings)
        except ConfigError as error:
            refusal = str(error)
        blamed = [key for name, key in variables.items() if re.search(rf"\b{name}\b", refusal)]
        told = f"; from the environment: {', '.join(blamed)}" if blamed else ""
        raise ConfigError(refusal + told)


def _given(prefix: str, known: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that give settings."""
    if not prefix:
        raise ConfigError("prefix must not be empty: any variable would have to be a setting")
    ours = {key for key in environ if key.startswith(prefix) and not key.startswith(NO_SETTINGS)}
    if unknown := sorted(ours.difference(known)):
        raise ConfigError(_unknown(unknown[0], known))
    return {key: environ[key] for key in known if environ.get(key)}


def _unknown(key: str, known: Iterable[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - for this error alone

    (nearest,) = get_close_matches(key, [*known], 1, cutoff=0)
    advice = _ADVICE if _OF_A_SERVICE.search(key) else ""
    return (
        f"the environment variable {key} is no setting; the nearest one is {nearest}: rename it, "
        f"or unset it{advice}"
    )


def _replaced(settings: Mapping[str, Any]) -> set[str]:
    """Whose variables do not count beside these settings."""
    names = {*settings}
    if "dsn" in names:
        return names | _PLACE
    return names | {"dsn"} if names & _PLACE else names


def _parsed(key: str, text: str, kind: Any) -> Any:
    """A variable's value, as the field's type has it."""
    kind, *nothing = [kind] if get_origin(kind) in (None, Literal) else get_args(kind)
    if kind is str:
        return text
    words: dict[str, Any] = {one: one for one in get_args(kind)}
    words |= {"none": None} if nothing else {}
    expected = " or ".join([*([_EXPECTED[kind]] if kind in _EXPECTED else []), *words])
    words |= _BOOLS if kind is bool else {}
    word = text.strip().lower()
    if word in words:
        return words[word]
    with suppress(ValueError):
        if kind in (int, float):
            return kind(word)
    advice = _ADVICE if _OF_A_SERVICE.search(f"{key}={word}") else ""
    raise ConfigError(f"{key} must be {expected}; got {text!r:.100}{advice}")
