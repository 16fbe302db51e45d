"""Memory in a PostgreSQL database. Its modules need the extra `sojourn[postgres]`."""
