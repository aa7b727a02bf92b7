"""A config that fails: for the test of what the program then says."""

undefined  # noqa: B018
