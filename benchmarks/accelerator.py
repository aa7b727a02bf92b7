"""Measures this package on whatever JAX finds, within the minutes that it is given.

    python -m benchmarks.accelerator [--minutes=10] [--cases=NAME,...] [--out=DIR] [--list]

Cases come in order of worth, each in a process of its own with a bound in time. What they measure
is written to DIR/measured.jsonl as it comes: the same command resumes with the cases that are not
done. DIR/table.md and DIR/results.json hold all of it at the end. PyTorch's sides need torch; where
it is missing, or cannot do one of them, the table says so.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

# Cases, most worth first, each with the most seconds that it may take.
CASES = {
    "chip": 60,
    "step_mnist": 150,
    "step_factor_vae": 150,
    "run": 240,
    "seeds": 240,
    "step_mvtec": 240,
    "maps_mvtec": 90,
    "options": 240,
    "maps_mnist": 60,
    "step_ad_factor_vae": 150,
    "step_ped1": 150,
    "maps_ped1": 60,
    "counts": 60,
}

_MEASURED, _DONE = "measured.jsonl", "done"
_LEAST_SECONDS = 10  # of a case: with less left it is not begun

Row = dict[str, str | float]


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.accelerator",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="for all cases together")
    parser.add_argument("--cases", default=",".join(CASES), help="some of them, by comma")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/accelerator"))
    parser.add_argument("--small", action="store_true", help="tiny sizes, and no bound on a case")
    parser.add_argument("--list", action="store_true", help="names the cases, measures nothing")
    arguments = parser.parse_args()
    chosen = arguments.cases.split(",")
    if unknown := [name for name in chosen if name not in CASES]:
        parser.error(f"no case {', '.join(unknown)}: choose from {', '.join(CASES)}")
    if arguments.list:
        print("\n".join(f"{name:18} at most {CASES[name]} s" for name in CASES))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + 60 * arguments.minutes
    for name in CASES:
        if name in chosen and name not in _done(arguments.out):
            _run(name, arguments.out, ends, small=arguments.small)
    rows = _rows(arguments.out)
    (arguments.out / "results.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    table = as_table(rows)
    (arguments.out / "table.md").write_text(table, encoding="utf-8")
    print(table, end="")


def _run(name: str, out: pathlib.Path, ends: float, *, small: bool) -> None:
    """Runs a case in a process of its own; one that is cut short, or fails, says so in a row."""
    left = ends - time.monotonic()
    seconds = left if small else min(CASES[name], left)
    if seconds < _LEAST_SECONDS:
        print(f"{name}: no time left; the same command resumes with it", file=sys.stderr)
        return
    command = [sys.executable, "-m", "benchmarks.accelerator_cases", name, str(out / _MEASURED)]
    # Else JAX takes most of the memory, of which PyTorch needs some in the same process.
    environment = os.environ | {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    print(f"{name}: at most {seconds:.0f} s", file=sys.stderr, flush=True)
    try:
        subprocess.run(
            [*command, *(["--small"] if small else [])],
            env=environment,
            timeout=seconds,
            check=True,
            stdout=sys.stderr,
        )
        note = ""
    except subprocess.TimeoutExpired:
        if seconds == left:
            return  # not its own fault: it is begun again
        note = f"cut short after {seconds:.0f} s"
    except subprocess.CalledProcessError as error:
        note = f"ended with code {error.returncode}"
    append(out / _MEASURED, {"case": name, "side": _DONE, "note": note})


def append(path: pathlib.Path, row: Row) -> None:
    """Adds a row to the measurements, whole or not at all to a reader."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def measured(path: pathlib.Path) -> list[Row]:
    """All rows of a file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    rows = []
    for line in lines:
        try:
            rows.append(json.loads(line))
        except ValueError:  # half a line of a process that was killed
            continue
    return rows


def _done(out: pathlib.Path) -> set[str]:
    return {row["case"] for row in measured(out / _MEASURED) if row["side"] == _DONE}


def _rows(out: pathlib.Path) -> list[Row]:
    """What was measured, of cases begun twice the later; and why a case has no more."""
    latest = {
        (row["case"], row["side"]): row
        for row in measured(out / _MEASURED)
        if row["side"] != _DONE or row["note"]
    }
    order = list(CASES)
    return sorted(latest.values(), key=lambda row: order.index(row["case"]))


def as_table(rows: list[Row]) -> str:
    """Markdown: a line for everything measured."""
    lines = ["| case | side | measured | | |", "|---|---|---|---|---|"]
    for row in rows:
        value = f"{row['value']:.4g} {row['unit']}" if "value" in row else ""
        memory = f"{row['peak_mib']:,.0f} MiB" if row.get("peak_mib") else ""
        side = "" if row["side"] == _DONE else row["side"]
        lines.append(f"| {row['case']} | {side} | {value} | {memory} | {row.get('note', '')} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
