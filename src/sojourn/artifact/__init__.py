"""Artifacts: their types, the seam, and the services that keep them."""
