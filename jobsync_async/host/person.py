"""Who is at the keyboard, as the operating system knows it."""

from __future__ import annotations

import getpass

NOBODY_KNOWN = "somebody"


def person(codec: str = "utf-8") -> str:
    """The login name of whoever runs this process, in characters that a codec has; where the system
    knows none, as in a container, a word that stands for it."""
    try:
        name = getpass.getuser()
    except (OSError, KeyError, ImportError):  # no variable names one, and the number has no name
        return NOBODY_KNOWN
    return name.encode(codec, "backslashreplace").decode(codec)
