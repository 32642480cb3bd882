"""Makes the pictures of the documents, and draws the documents' diagrams.

    uv run python -m docs.pictures tokens     # docs/figures/tokens.svg, by the library's own plan
    uv run python -m docs.pictures demo       # docs/figures/demo.svg, by running the demo
    uv run python -m docs.pictures rooms      # docs/figures/rooms.svg, by the package's imports
    uv run python -m docs.pictures page       # docs/figures/page-….png, by Chromium

A drawn picture is one file. Its colours follow the reader's light or dark theme, its movement is
CSS inside it, and it loads nothing. Where nothing may move, or can, it is a still picture.
"""
