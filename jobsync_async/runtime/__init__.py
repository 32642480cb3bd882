"""One worker's life: what a `Job` runs on, with a cluster or without."""
