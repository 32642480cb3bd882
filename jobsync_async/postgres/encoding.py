"""What Python calls the encodings of databases."""

from __future__ import annotations

import codecs

_OTHER_NAMES = {"KOI8R": "koi8_r", "KOI8U": "koi8_u"}


def codec_of(server_encoding: str) -> str:
    """Python's codec for a database's encoding; ``"ascii"``, which all have in common, for one that
    Python does not know."""
    name = _OTHER_NAMES.get(server_encoding, server_encoding.replace("WIN", "cp"))
    try:
        return codecs.lookup(name).name
    except LookupError:
        return "ascii"
