"""What is done with owned tokens: claims, streams, batches, `run_owned`, records and pins."""
