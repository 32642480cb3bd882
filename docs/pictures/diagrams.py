"""The documents' diagrams, drawn while the site is built.

A page holds a diagram as a fenced block of Mermaid's language. On the site, a script would load
Mermaid from another host to show it, so `fence` puts an SVG into the page instead. It knows of the
language what the documents use. Anything else is an error of the build.
"""

from __future__ import annotations

from typing import Any

from pymdownx.superfences import SuperFencesException

from docs.pictures import sequence, states

KINDS = {"sequenceDiagram": sequence.draw, "stateDiagram-v2": states.draw}


def fence(source: str, language: str, css_class: str, options: Any, md: Any, **more: Any) -> str:
    """A formatter for pymdownx.superfences: the picture of a block."""
    kind = source.strip().partition("\n")[0].strip()
    try:
        if kind not in KINDS:
            raise ValueError(f"{kind!r} is none of {', '.join(KINDS)}")
        return KINDS[kind](source.strip())
    except ValueError as error:
        raise SuperFencesException(f"docs.pictures: {error}") from error
