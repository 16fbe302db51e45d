"""google-adk's REST dialect, so that its web UI and its clients work unchanged."""
