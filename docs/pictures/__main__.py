"""``python -m docs.pictures tokens`` and ``python -m docs.pictures demo``."""

from __future__ import annotations

import argparse
from pathlib import Path

from docs.pictures import recording, tokens

FIGURES = Path(__file__).parents[1] / "figures"
FILES_RECORDED = 700  # so many files take the demo about a quarter of a minute


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="docs.pictures", description="Make the pictures of the home page."
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
    for parser_of_one in (moving, demo):
        parser_of_one.add_argument(
            "--to", type=Path, help="the file to write; default: the one in docs/figures"
        )
    asked = parser.parse_args()
    made = tokens.draw() if asked.picture == "tokens" else recording.record(asked.dsn, asked.files)
    to: Path = asked.to or FIGURES / f"{asked.picture}.svg"
    to.write_text(made, "utf-8")
    print(f"{to}: {len(made.encode()):,} bytes")


if __name__ == "__main__":
    main()
