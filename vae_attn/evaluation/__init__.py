"""Scores of maps and codes."""
