"""Trains a VAE, scores its attention maps and shows them.

    python -m vae_attn.main --config=configs/mnist.py:3 [--workdir=DIR] [--mode=MODE]
        [--config.KEY=VALUE ...] [--images=FILES [--tiles=place|free]] [--distributed]
    python -m vae_attn.main --workdir=DIR [--mode=MODE] [--config.KEY=VALUE ...]
    python -m vae_attn.main --mode=report [--workdirs='runs/*'] [--workdir=runs/report]

The same command on the same workdir resumes where it stopped, and a larger --config.train.steps or
--config.train.epochs trains longer. A run that exists keeps its config: --workdir alone suffices.
Without --workdir it is runs/<config>_<variant>, such as runs/mnist_3; if --config.data.dir gives
other images than the config file does, the name of their folder is appended: runs/folder_photos.

SIGTERM and SIGINT stop a training with a checkpoint. A trained run is used without its data:
--mode=explain --images='photos/*.png' explains one's own images, with --tiles those larger than the
model's tile by tile; --mode=export writes its maps as a file that jax alone can load. --mode=report
compares runs in one table and page.
"""

import logging
import os
import pathlib
import sys
import warnings

from absl import app, flags
from absl import logging as absl_logging

from vae_attn import command_line, progress
from vae_attn.errors import UserError

_LOG = logging.getLogger("vae_attn")


def main(argv: list[str]) -> None:
    """Runs the mode that the flags ask for."""
    del argv
    given = flags.FLAGS
    # Imported here, so that a wrong flag is reported without delay.
    if given.mode == "report":
        from vae_attn.experiments import compare_runs

        folder = pathlib.Path(given.workdir or "runs/report")
        _LOG.info("all runs: %s", compare_runs.write(given.workdirs or "runs/*", folder))
        return
    from vae_attn.experiments import run as experiment
    from vae_attn.training import distributed, preemption

    names = ("coordinator_address", "num_processes", "process_id")
    processes = {name: given[name].value for name in names}
    if given.distributed or any(value is not None for value in processes.values()):
        distributed.initialize(**processes)
        if not distributed.is_main():
            _LOG.setLevel(logging.WARNING)
    workdir = pathlib.Path(given.workdir) if given.workdir else command_line.default_workdir()
    try:
        experiment.run(
            given.config, workdir, mode=given.mode, images=given.images, tiles=given.tiles
        )
    except preemption.Stopped as stopped:
        _LOG.info("%s", stopped)
        sys.exit(given.stopped_exit_code)


def run() -> None:
    """The program: user errors end it with one sentence and exit code 2."""
    # As under LC_ALL=C, where libraries refuse paths with other letters than ASCII's.
    if sys.getfilesystemencoding() != "utf-8":
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
    progress.show_log()
    # What orbax logs as an error it raises too.
    absl_logging.set_verbosity(absl_logging.FATAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of oddities that it reads past
    try:
        app.run(main, flags_parser=command_line.parse)
    except UserError as error:
        print(f"vae_attn: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("vae_attn: interrupted; the same command resumes.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
