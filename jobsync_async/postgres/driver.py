"""Imported before everything else: psycopg needs libpq, which no plain installation brings
along."""

try:
    import psycopg  # noqa: F401 - only whether it can be imported
except ImportError as error:
    if "pq wrapper" not in str(error):
        raise
    raise ImportError(
        "psycopg finds no libpq, PostgreSQL's client library: `pip install "
        "'jobsync-async[binary]'` brings it along, or install that of the system (Debian: libpq5)"
    ) from error
