"""``python -m tests.simulation``: many seeds, one seed with its transcript, or a day."""

from tests.simulation.runner import main

main()
