"""The benchmark of accelerators: it keeps to its minutes, resumes, and measures every case."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks import accelerator


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Runs it with cases that measure nothing; returns its table, and what was begun."""
    begun = []

    def run(cases=("chip", "run", "seeds"), *, minutes=10, fault=None):
        def measure(command, *, timeout, **options):
            name, path = command[3], pathlib.Path(command[4])
            begun.append((name, timeout))
            accelerator.append(path, {"case": name, "side": "ours", "value": 2.0, "unit": "ms"})
            if name == "seeds" and fault is not None:
                raise fault

        monkeypatch.setattr(accelerator.subprocess, "run", measure)
        flags = [f"--cases={','.join(cases)}", f"--minutes={minutes}", f"--out={tmp_path}"]
        monkeypatch.setattr(sys, "argv", ["accelerator", *flags])
        accelerator.main()
        return (tmp_path / "table.md").read_text(encoding="utf-8")

    run.begun, run.out = begun, tmp_path
    return run


def test_cases_come_in_order_of_worth_and_once(program):
    table = program(("run", "seeds", "chip"))
    assert [name for name, _ in program.begun] == ["chip", "run", "seeds"]
    assert table.splitlines()[2] == "| chip | ours | 2 ms |  |  |"
    assert program(("run", "seeds", "chip")) == table
    assert len(program.begun) == 3
    rows = json.loads((program.out / "results.json").read_text(encoding="utf-8"))
    assert [row["case"] for row in rows] == ["chip", "run", "seeds"]


@pytest.mark.parametrize(
    ("fault", "note"),
    [
        (subprocess.TimeoutExpired("", 1), f"cut short after {accelerator.CASES['seeds']} s"),
        (subprocess.CalledProcessError(-9, ""), "ended with code -9"),
    ],
)
def test_a_case_that_fails_is_told_and_the_others_follow(program, fault, note):
    table = program(("seeds", "maps_mnist"), fault=fault)
    assert f"| seeds | ours | 2 ms |  |  |\n| seeds |  |  |  | {note} |\n| maps_mnist |" in table


def test_minutes_bound_all_cases_and_the_next_call_goes_on(program, capsys):
    program(minutes=0.5)
    assert all(0 < timeout <= 30 for _, timeout in program.begun)
    program.begun.clear()
    program(("step_mnist",), minutes=0.01)
    assert not program.begun
    assert "step_mnist: no time left" in capsys.readouterr().err
    # One that the end of the minutes cut short is begun again.
    program(("maps_mnist", "seeds"), minutes=0.5, fault=subprocess.TimeoutExpired("", 1))
    program.begun.clear()
    with (program.out / "measured.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"case": "half a l\n')
    program(("step_mnist",))
    assert [name for name, _ in program.begun] == ["step_mnist"]


def test_an_unknown_case_is_refused(program, capsys):
    with pytest.raises(SystemExit):
        program(("chip", "chips"))
    assert "no case chips: choose from chip," in capsys.readouterr().err


@pytest.mark.slow
def test_every_case_measures_something(tmp_path):
    flags = ["--small", "--minutes=30", f"--out={tmp_path}"]
    one_device = os.environ | {"XLA_FLAGS": ""}
    command = [sys.executable, "-m", "benchmarks.accelerator", *flags]
    subprocess.run(command, env=one_device, check=True)
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert [row["note"] for row in rows if row["side"] == "done"] == []
    measured = {row["case"]: [] for row in rows}
    for row in rows:
        if "value" in row:
            measured[row["case"]].append(row["side"])
    assert set(measured) == set(accelerator.CASES)
    assert "ours, bfloat16, 2 a call" in measured["step_mvtec"]
    assert "2 seeds, 1 a call" in measured["seeds"]
    assert "32 maps at conv2" in measured["maps_ped1"]
    assert [side.split(", ")[1] for side in measured["counts"]] == ["threads: 1", "threads: 2"]
    assert len(measured["options"]) == 10
    assert measured["run"] == ["start", "train", "its steps", "evaluate"]
