"""Data sources; each returns images as uint8 arrays."""
