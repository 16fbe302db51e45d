"""Memory in Qdrant. Its modules need the extra `sojourn[qdrant]`."""
