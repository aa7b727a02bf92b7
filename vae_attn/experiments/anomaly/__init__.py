"""One-class runs: which images are abnormal, and where."""
