"""What services in a SQLite file share: the threads, opening a file, its schema, and what errors mean."""
