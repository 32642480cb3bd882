"""The real workers on one virtual clock and one seeded scheduler, against a model of the tables.
See docs/testing.md."""
