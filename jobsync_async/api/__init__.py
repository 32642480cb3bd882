"""What a `Job` offers, by topic; `Job` puts the topics together."""
