"""Starts one program in several processes on this machine, each with simulated devices.

    python launch/local.py --processes=2 --devices=2 -- --config=configs/digits.py [...]

What follows `--` is passed to `vae_attn.main`. Every line of a process is printed after its
number. SIGTERM and SIGINT go to all processes, which then save a checkpoint; when a
process fails, the others are ended.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence

_POLL_SECONDS = 0.1


def run(program: Sequence[str], *, processes: int, devices: int) -> int:
    """Runs a program that knows the flags of `vae_attn.main` about processes.

    Args:
      program: the command.
      processes: how many.
      devices: simulated ones in each process.

    Returns:
      0 if all processes exit with that; otherwise what the first to fail exits with, or, as in a
      shell, 128 and the signal that ended it.
    """
    command = [
        *program,
        f"--coordinator_address=localhost:{_free_port()}",
        f"--num_processes={processes}",
    ]
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONUNBUFFERED": "1",
        "XLA_FLAGS": flags.strip(),
    }
    started: list[subprocess.Popen] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: _send(started, number))
    try:
        for rank in range(processes):
            started.append(
                subprocess.Popen(
                    [*command, f"--process_id={rank}"],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    # Otherwise the terminal's Ctrl-C would reach them twice.
                    start_new_session=True,
                )
            )
        printers = [
            threading.Thread(target=_print_lines, args=(rank, process))
            for rank, process in enumerate(started)
        ]
        for printer in printers:
            printer.start()
        code = _wait(started)
    finally:
        _send(started, signal.SIGKILL)
        for process in started:
            process.wait()
    for printer in printers:
        printer.join()
    return code


def _wait(processes: list[subprocess.Popen]) -> int:
    while True:
        codes = [process.poll() for process in processes]
        if failed := [(rank, code) for rank, code in enumerate(codes) if code]:
            rank, code = failed[0]
            print(f"[{rank}] ended with {code}; all are ended.", flush=True)
            return code if code > 0 else 128 - code
        if None not in codes:
            return 0
        time.sleep(_POLL_SECONDS)


def _send(processes: list[subprocess.Popen], number: int) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(number)


def _print_lines(rank: int, process: subprocess.Popen) -> None:
    for line in process.stdout:
        # As bytes, whatever the encoding of either.
        sys.stdout.buffer.write(f"[{rank}] ".encode() + line)
        sys.stdout.buffer.flush()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        return listener.getsockname()[1]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="how many (2)")
    parser.add_argument("--devices", type=int, default=1, help="simulated, in each process (1)")
    parser.add_argument("arguments", nargs="*", help="of vae_attn.main, after --")
    options = parser.parse_args()
    if min(options.processes, options.devices) < 1:
        parser.error("--processes and --devices are 1 or more")
    program = [sys.executable, "-m", "vae_attn.main", *options.arguments]
    sys.exit(run(program, processes=options.processes, devices=options.devices))


if __name__ == "__main__":
    main()
