"""The benchmark's own machinery; what it measures is checked by itself, before it measures."""

import functools
import importlib
import importlib.util
import subprocess
import sys

import fake_sides
import numpy as np
import pytest

from benchmarks.case import OURS, Case, difference
from benchmarks.timing import SidesDifferError, Timing, measure


def _case(**sides):
    return Case("sleep", "sleeping", 1, "naps", sides, rounds=3, warm_up=False)


def _sleeper(seconds, value=1.0):
    return functools.partial(fake_sides.sleeper, seconds, value)


def test_sides_are_timed_in_processes_of_their_own():
    found = measure(_case(**{OURS: _sleeper(0.05), "other": _sleeper(0.2)}))
    assert list(found) == [OURS, "other"]
    assert len(found["other"].seconds) == 3
    # Sleep lasts at least as long as it is asked to; a busy machine only makes it longer.
    assert min(found[OURS].seconds) >= 0.05
    assert min(found["other"].seconds) >= 0.2
    assert found[OURS].peak_mib > 5


def test_nothing_is_timed_where_the_sides_differ_or_fail():
    with pytest.raises(SidesDifferError, match=r"value of other differs by 0\.5"):
        measure(_case(**{OURS: _sleeper(0), "other": _sleeper(0, 2.0)}))
    with pytest.raises(SidesDifferError, match="no such model"):
        measure(_case(**{OURS: _sleeper(0), "other": fake_sides.broken}))


def test_ratio_and_spread_by_hand():
    ours, theirs = Timing((1.0, 2.0, 4.0), 0.0), Timing((3.0, 4.0, 4.0), 0.0)
    assert ours.median == 2.0
    assert ours.ratio(theirs) == 2.0  # of 3, 2 and 1
    assert ours.spread == pytest.approx((3.0 - 1.5) / 2 / 2.0)


def test_difference_is_relative_and_notices_shapes():
    ones = np.ones(4)
    assert difference({"a": ones * 1.1}, {"a": ones}) == {"a": pytest.approx(0.1)}
    assert difference({"a": ones}, {"a": ones[:3]}) == {"a": np.inf}


@pytest.mark.skipif(importlib.util.find_spec("captum") is None, reason="captum is an extra")
def test_all_cases_are_listed():
    """Every file of cases imports, and no two have one name."""
    listed = subprocess.run(
        [sys.executable, "-m", "benchmarks.run", "--list"], capture_output=True, text=True
    )
    names = [line.split()[0] for line in listed.stdout.splitlines()]
    assert len(names) == len(set(names)) >= 20, listed.stderr


def test_an_unknown_case_is_told(monkeypatch, capsys):
    run = importlib.import_module("benchmarks.run")
    monkeypatch.setattr(sys, "argv", ["run", "nothing"])
    monkeypatch.setattr(run, "_cases", lambda: [_case(**{OURS: _sleeper(0)})])
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(SystemExit):
        run.main()
    assert "no case begins with nothing" in capsys.readouterr().err
