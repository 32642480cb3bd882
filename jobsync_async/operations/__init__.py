"""What the command line asks and tells, as plain dictionaries: their shapes are those of
docs/command-line.md."""
