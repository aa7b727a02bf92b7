r"""Runs the cross product of seeds and values of config keys, one run after the other.

    python launch/sweep.py --config=configs/mnist.py:3 --set model.latents=16,32 \
        --set train.beta=0.5,1 [--seeds=0,1] [--workdir=runs/sweep] [--dry_run] [-- ...]

What follows `--` is passed to every `vae_attn.main`. Each run has a folder in --workdir whose name
holds its values, so that the same command resumes where it stopped. A run that fails does not stop
the others; they are listed at the end. SIGTERM and SIGINT go to the current run, which then saves
a checkpoint, and end the sweep. `python -m vae_attn.main --mode=report --workdirs=runs/sweep`
compares the runs.
"""

import argparse
import itertools
import pathlib
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence

# Of a run that a signal of its own stopped: it is not done, and so among those that failed.
_STOPPED = 75


def commands(options: argparse.Namespace) -> dict[str, list[str]]:
    """The command of each run, by the run's name."""
    values: dict[str, list[str]] = {}
    for one in (*options.set, *([f"seed={options.seeds}"] if options.seeds else ())):
        key, given = _split(one)
        if key in values:
            raise argparse.ArgumentTypeError(f"{key} is given twice")
        values[key] = given
    path, _, variant = options.config.partition(":")
    stem = "_".join(filter(None, (pathlib.Path(path).stem, variant)))
    found = {}
    for chosen in itertools.product(*values.values()):
        pairs = list(zip(values, chosen, strict=True))
        name = "-".join([stem, *(f"{_short(key, values)}={value}" for key, value in pairs)])
        name = re.sub(r"[^\w.=+-]+", "_", name)
        if name in found:
            raise argparse.ArgumentTypeError(f"two runs would have the name {name}")
        found[name] = [
            *(sys.executable, "-m", "vae_attn.main", f"--config={options.config}"),
            f"--workdir={pathlib.Path(options.workdir) / name}",
            f"--stopped_exit_code={_STOPPED}",
            *(f"--config.{key}={value}" for key, value in pairs),
            *options.arguments,
        ]
    return found


def _split(text: str) -> tuple[str, list[str]]:
    """`key=a,b` as its key and values; commas in brackets are those of tuples."""
    key, equals, values = text.partition("=")
    if not (key and equals and values):
        raise argparse.ArgumentTypeError(f"{text!r} must be KEY=VALUE[,VALUE ...]")
    return key, re.split(r",(?![^(]*\))", values)


def _short(key: str, keys: Sequence[str]) -> str:
    """The key's last part, where no other key of the sweep ends with the same."""
    last = key.rpartition(".")[2]
    return last if sum(other.rpartition(".")[2] == last for other in keys) == 1 else key


class Sweep:
    """Runs commands one after the other, until a signal comes."""

    def __init__(self) -> None:
        """Handles SIGTERM and SIGINT, which go to the current run."""
        self._process: subprocess.Popen | None = None
        self._signal = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)

    def run(self, commands: dict[str, list[str]]) -> int:
        """Runs them; 0, 1 if any failed, or, as in a shell, 128 and the signal that came."""
        failed = []
        for number, (name, command) in enumerate(commands.items(), start=1):
            if self._signal:
                break
            print(f"[{number}/{len(commands)}] {shlex.join(command)}", flush=True)
            # Of its own session: otherwise the terminal's Ctrl-C would reach it twice.
            self._process = subprocess.Popen(command, start_new_session=True)
            if self._signal:  # came before there was a process to send it to
                self._process.send_signal(self._signal)
            if (code := self._process.wait()) and not self._signal:
                failed.append(f"{name} (exit code {code})")
        if failed:
            print(f"{len(failed)} of {len(commands)} runs failed:", *failed, sep="\n  ")
        if self._signal:
            print("stopped; the same command resumes it.")
            return 128 + self._signal
        return 1 if failed else 0

    def _stop(self, number: int, _) -> None:
        self._signal = number
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(number)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a file of configs/, with its variant")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE,...", help="of the config"
    )
    parser.add_argument("--seeds", help="such as 0,1,2")
    parser.add_argument("--workdir", default="runs/sweep", help="of all runs (runs/sweep)")
    parser.add_argument("--dry_run", action="store_true", help="only print the commands")
    parser.add_argument("arguments", nargs="*", help="of vae_attn.main, after --")
    options = parser.parse_args()
    try:
        found = commands(options)
    except argparse.ArgumentTypeError as error:
        parser.error(f"--set, --seeds: {error}")
    if options.dry_run:
        print(*map(shlex.join, found.values()), sep="\n")
        return
    sys.exit(Sweep().run(found))


if __name__ == "__main__":
    main()
