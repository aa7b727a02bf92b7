"""A module that cannot be imported; see test_open_models.py."""

raise OSError("no such disk")
