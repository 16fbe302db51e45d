"""What a Runner is asked to do with sessions and runs, before it is recorded."""
