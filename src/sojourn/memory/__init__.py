"""Memory: its types, the seam, and the services that keep it."""
