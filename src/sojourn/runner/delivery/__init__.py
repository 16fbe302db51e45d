"""Which run is executed when, and what becomes of those that a process leaves behind."""
