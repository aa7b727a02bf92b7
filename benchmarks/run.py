"""Measures ours beside PyTorch, and writes a table.

    python -m benchmarks.run [NAME ...] [--rounds=N] [--json=FILE] [--list]

A name is a case's, or the beginning of some. Needs torch and captum: `pip install -e ".[bench]"`.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import sys

FILES = ("training", "factor", "attention", "attributions", "scores", "startup", "growth")


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="benchmarks.run", description=__doc__)
    parser.add_argument("names", nargs="*", help="cases, or beginnings of their names; all if none")
    parser.add_argument("--rounds", type=int, help="measurements of each side, instead of a case's")
    parser.add_argument("--json", type=pathlib.Path, help="where all measurements go too")
    parser.add_argument("--list", action="store_true", help="names the cases and measures nothing")
    arguments = parser.parse_args()
    for needed in ("torch", "captum"):
        if importlib.util.find_spec(needed) is None:
            parser.error(f'{needed} is missing: pip install -e ".[bench]" (a CPU build will do)')
    chosen = [
        case
        for case in _cases()
        if not arguments.names or any(case.name.startswith(name) for name in arguments.names)
    ]
    if not chosen:
        parser.error(f"no case begins with {' or '.join(arguments.names)}; --list names all")
    if arguments.list:
        print("\n".join(f"{case.name:28} {case.what}" for case in chosen))
        return
    _run(chosen, arguments.rounds, arguments.json)


def _cases() -> list:
    modules = (importlib.import_module(f"benchmarks.{file}") for file in FILES)
    return [case for module in modules for case in module.cases()]


def _run(chosen: list, rounds: int | None, path: pathlib.Path | None) -> None:
    from benchmarks.timing import SidesDifferError, measure

    print("| what | side | median | spread | a second | peak memory | ours is sooner by | goal |")
    print("|---|---|---|---|---|---|---|---|")
    results, failed = [], []
    for case in chosen:
        try:
            timings = measure(case, rounds=rounds)
        except SidesDifferError as error:
            failed.append(str(error))
            continue
        ours = next(iter(timings.values()))
        for name, timing in timings.items():
            print(_row(case, name, timing, ours.ratio(timing)), flush=True)
        results.append(
            {
                "name": case.name,
                "what": case.what,
                "sides": {
                    name: {
                        "seconds": timing.seconds,
                        "peak_mib": timing.peak_mib,
                        "ratio": ours.ratio(timing),
                        "goal": case.goals.get(name),
                    }
                    for name, timing in timings.items()
                },
            }
        )
    print(f"\n{_machine()}")
    if path is not None:
        path.write_text(
            json.dumps({"machine": _machine(), "cases": results}, indent=2) + "\n", encoding="utf-8"
        )
    if failed:
        sys.exit("\n".join(failed))


def _row(case, name: str, timing, ratio: float) -> str:
    cells = [
        case.what,
        name,
        f"{timing.median * 1e3:.1f} ms" if timing.median < 10 else f"{timing.median:.1f} s",
        f"{timing.spread:.0%}",
        f"{case.items / timing.median:.3g} {case.unit}",
        f"{timing.peak_mib / 1024:.2f} GiB",
        f"{ratio:.2f}",
        f"{case.goals[name]:.2f}" if name in case.goals else "",
    ]
    return f"| {' | '.join(cells)} |"


def _machine() -> str:
    from importlib.metadata import version

    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "jaxlib", "torch"))
    where = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return f"{where}, {versions}"


if __name__ == "__main__":
    main()
