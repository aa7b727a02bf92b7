"""Sides of a benchmark for test_benchmarks.py, importable from the processes it starts."""

import time

import numpy as np

from benchmarks.case import Side


def sleeper(seconds, value=1.0):
    return Side(lambda: time.sleep(seconds), {"value": np.full(3, value)})


def broken():
    raise RuntimeError("no such model")
