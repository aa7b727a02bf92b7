"""Trains a VAE, scores its attention maps and shows them.

    python -m vae_attn.main --config=configs/mnist.py:3 [--workdir=DIR] [--mode=MODE]
        [--config.KEY=VALUE ...] [--images=FILES] [--distributed]
    python -m vae_attn.main --mode=report [--workdirs='runs/*'] [--workdir=runs/report]

The same command on the same workdir goes on where it stopped. SIGTERM and SIGINT stop a training
with a checkpoint. A trained run is used without its data: --mode=explain --images='photos/*.png'
explains one's own images, --mode=export writes its maps as a file that jax alone can load.
--mode=report compares runs in one table and page.
"""

import logging
import pathlib
import re
import sys
import warnings

from absl import app, flags
from absl import logging as absl_logging
from ml_collections import config_flags

from vae_attn.errors import UserError, shown

_LONGEST = 1000  # characters of a line of absl's

MODES = ("all", "train", "evaluate", "explain", "export", "report")

_CONFIG = config_flags.DEFINE_config_file("config", None, "Experiment, a file of configs/.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config name>.")
_MODE = flags.DEFINE_enum(
    *("mode", "all", MODES),
    "train; evaluate: score maps; explain: draw them; export: for others; report: compare runs.",
)
_IMAGES = flags.DEFINE_string(
    "images", None, "With --mode=explain: own images, a file, a folder or a quoted pattern."
)
_WORKDIRS = flags.DEFINE_string(
    "workdirs", None, "With --mode=report: the runs, folders or quoted patterns; default runs/*."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several processes, as TPU, Slurm or Kubernetes say; one for each host."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "Where nothing says it: HOST:PORT of the first process."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Where nothing says it.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process_id", None, "Where nothing says it.", lower_bound=0)
_STOPPED = flags.DEFINE_integer(
    "stopped_exit_code", 0, "Of a training that a signal stopped; the files of launch/ set it."
)

_LOG = logging.getLogger("vae_attn")


def parse_flags(argv: list[str]) -> list[str]:
    """The parser of absl, with one sentence instead of a traceback for what a config cannot take.

    Args:
      argv: the command line, program name first.

    Returns:
      The program's name alone, since there are no positional arguments.

    Raises:
      UserError: for an unknown key, a whole section, a value of the wrong type, a missing or broken
        config file.
    """
    try:
        with warnings.catch_warnings():
            # A backslash in a value is one, whatever Python would say of it in its own code.
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            rest = flags.FLAGS(argv)
        if _MODE.value == "report":
            if _CONFIG.value is not None:
                raise UserError(
                    "--mode=report reads the configs of --workdirs: leave out --config."
                )
        elif _CONFIG.value is None:
            raise UserError("--config is missing: give one, such as --config=configs/digits.py.")
        else:  # a config file that failed to load says so only when it is used
            _ = _CONFIG.value["seed"]
    except UserError:
        raise
    except Exception as error:  # a config file is code, and may fail in any way
        raise UserError(_one_sentence(error, argv)) from error
    for key, value in _CONFIG.value.items() if _CONFIG.value is not None else ():
        if hasattr(value, "items") and f"config.{key}" in flags.FLAGS:
            raise UserError(
                f"--config.{key} is a section, which cannot be replaced: give its keys one by one, "
                f"such as --config.{key}.KEY=VALUE."
            )
    if len(rest) > 1:
        raise UserError(
            f"unexpected argument {shown(repr(rest[1]))}: every option starts with --, and a "
            "pattern of files is quoted."
        )
    if _IMAGES.value is not None and _MODE.value != "explain":
        raise UserError(f"--images is for --mode=explain, and not for --mode={_MODE.value}.")
    if _WORKDIRS.value is not None and _MODE.value != "report":
        raise UserError(f"--workdirs is for --mode=report, and not for --mode={_MODE.value}.")
    return rest


def _one_sentence(error: Exception, argv: list[str]) -> str:
    """What absl and ml_collections say in several lines, some of them a traceback."""
    text = (str(error).strip() or type(error).__name__).replace("\\n", "\n").replace("\\'", "'")
    if match := re.search(r"'(\w+)'?\s*Did you mean \"(\w+)\"", text):
        return _no_key(match[1], argv) + f" Did you mean {match[2]!r}?"
    if re.fullmatch(r"[\"']+\w+[\"']+", text):
        return _no_key(text.strip("\"'"), argv)
    # The first line tells where, the last one what.
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    first = lines[0].removesuffix(" Error whilst parsing config file:")
    told = " ".join(shown(line, _LONGEST) for line in dict.fromkeys([first, lines[-1]]))
    return f"the command line cannot be used: {told}"


def _no_key(key: str, argv: list[str]) -> str:
    given = next((argument for argument in argv if key in argument), key)
    return f"{shown(given)}: the config has no key {key!r}; vae_attn/config.py lists all."


def default_workdir() -> pathlib.Path:
    """`runs/<name>`, the config file's stem with the variant behind a colon appended."""
    path, _, variant = flags.FLAGS["config"].config_filename.partition(":")
    stem = pathlib.Path(path).stem
    name = f"{stem}_{variant}" if variant else stem
    return pathlib.Path("runs") / name.replace(",", "_")


def main(argv: list[str]) -> None:
    """Runs the mode that the flags ask for."""
    del argv
    # Imported here, so that a wrong flag is told at once.
    if _MODE.value == "report":
        from vae_attn.experiments import compare_runs

        folder = pathlib.Path(_WORKDIR.value or "runs/report")
        _LOG.info("all runs: %s", compare_runs.write(_WORKDIRS.value or "runs/*", folder))
        return
    from vae_attn.experiments import run as experiment
    from vae_attn.training import distributed, preemption

    processes = {
        "coordinator_address": _COORDINATOR.value,
        "num_processes": _PROCESSES.value,
        "process_id": _PROCESS.value,
    }
    if _DISTRIBUTED.value or any(value is not None for value in processes.values()):
        distributed.initialize(**processes)
        if not distributed.is_main():
            _LOG.setLevel(logging.WARNING)
    workdir = pathlib.Path(_WORKDIR.value) if _WORKDIR.value else default_workdir()
    try:
        experiment.run(_CONFIG.value, workdir, mode=_MODE.value, images=_IMAGES.value)
    except preemption.Stopped as stopped:
        _LOG.info("%s", stopped)
        sys.exit(_STOPPED.value)


def run() -> None:
    """The program: user errors end it with one sentence and exit code 2."""
    # Our own lines only: the root logger, which absl takes, also carries orbax' many.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    _LOG.addHandler(handler)
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    # What orbax logs as an error it raises too.
    absl_logging.set_verbosity(absl_logging.FATAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # of oddities that it reads past
    try:
        app.run(main, flags_parser=parse_flags)
    except UserError as error:
        print(f"vae_attn: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("vae_attn: interrupted; the same command goes on.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    run()
