"""The loops of a worker: heartbeats, following changes, leading, watching others; and the worker,
which is what they share."""
