"""The explorer on a run's page, and the files beside it."""
