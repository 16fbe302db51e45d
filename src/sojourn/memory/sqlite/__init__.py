"""Memory in a SQLite file."""
