"""What a run is: load, train, evaluate, report."""
