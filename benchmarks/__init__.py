"""Measures what the library promises, on an embedded PostgreSQL that writes as safely as a real
one."""
