"""Makes the pictures of the home page, and draws the documents' sequence diagrams.

    uv run python -m docs.pictures tokens     # docs/figures/tokens.svg, by the library's own plan
    uv run python -m docs.pictures demo       # docs/figures/demo.svg, by running the demo

A picture is one file: its colours follow the reader's light or dark theme, its movement is CSS inside it, and it loads
nothing. Where nothing moves, because the reader does not want it or the program cannot show it, a still picture is shown.
"""
