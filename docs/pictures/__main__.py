"""``python -m docs.pictures tokens``, ``… demo``, ``… rooms`` and ``… page``."""

from __future__ import annotations

import argparse
from pathlib import Path

from docs.pictures import page, recording, rooms, tokens

FIGURES = Path(__file__).parents[1] / "figures"
FILES_RECORDED = 700  # so many files take the demo about a quarter of a minute


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="docs.pictures", description="Make the pictures of the documents."
    )
    pictures = parser.add_subparsers(dest="picture", required=True)
    moving = pictures.add_parser(
        "tokens", help="tokens that move when a worker dies and when one joins"
    )
    demo = pictures.add_parser(
        "demo", help="a recording of `jobsync-async demo`, which is run for it"
    )
    demo.add_argument("--dsn", help="a server to run on; default: an embedded one")
    demo.add_argument(
        "--files", type=int, default=FILES_RECORDED, help="how many files the demo checksums"
    )
    house = pictures.add_parser(
        "rooms", help="the rooms of the package, and which of them import which"
    )
    screen = pictures.add_parser("page", help="the page in Debian's Chromium, as page-….png")
    screen.add_argument("--to", type=Path, default=FIGURES, help="the folder to write them into")
    for parser_of_one in (moving, demo, house):
        parser_of_one.add_argument(
            "--to", type=Path, help="the file to write; default: the one in docs/figures"
        )
    asked = parser.parse_args()
    if asked.picture == "page":
        for made in page.draw(asked.to):
            print(f"{made}: {made.stat().st_size:,} bytes")
        return
    if asked.picture == "demo":
        drawn = recording.record(asked.dsn, asked.files)
    else:
        drawn = tokens.draw() if asked.picture == "tokens" else rooms.draw()
    to: Path = asked.to or FIGURES / f"{asked.picture}.svg"
    to.write_text(drawn, "utf-8")
    print(f"{to}: {len(drawn.encode()):,} bytes")


if __name__ == "__main__":
    main()
