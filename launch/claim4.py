r"""Does attention disentangle? Trains and scores objectives side by side, as far as time allows.

    python launch/claim4.py --minutes=13 --workdir=runs/claim4

Every call resumes where the last one stopped; `table.md` and `curves.png` in
--workdir have what is known so far.
The objectives (variants of `configs/dsprites.py`) are trained one after the other with the first
seeds, then with the next ones, so that early tables are paired. A call first measures its rate and
says what fits.

The folder stays below 60 MB, so that it can travel between machines: of the runs that are done
only the scores are kept, and of the one in progress the parameters in float32 and the moments of
Adam in bfloat16 (44 MB with a discriminator). Moments are rounded at every save, so that a run
that was stopped equals the one that was not. With --seeds_at_once several seeds of an objective
are one program and one state, and the folder has up to 60 MB for each.

Calls for different --objectives, each with a --workdir of its own, can share a GPU
(`docs/disentanglement.md`, "The full experiment"); a last call only reports all of them:

    python launch/claim4.py --workdir=runs/a --beside=runs/b,runs/c
"""

import argparse
import importlib.util
import json
import logging
import math
import os
import pathlib
import signal
import sys
import time
from collections.abc import Sequence

import jax
import ml_collections

from vae_attn import progress, whole_files
from vae_attn.config import flat
from vae_attn.data import sources
from vae_attn.errors import UserError
from vae_attn.experiments import validation
from vae_attn.experiments.disentanglement.objective_runs import (
    MARKS,
    Comparison,
    OutOfTimeError,
)
from vae_attn.workdir import DataRecord, WorkdirLock

ROOT = pathlib.Path(__file__).resolve().parents[1]
_SETTINGS = "settings.json"
OBJECTIVES = ("factor_vae", "ad_factor_vae", "ad_factor_vae_published", "beta_tc_vae")

_LOG = logging.getLogger("vae_attn")


def config_of(objective: str, options: argparse.Namespace) -> ml_collections.ConfigDict:
    """The config of an objective, checked."""
    spec = importlib.util.spec_from_file_location("dsprites", ROOT / "configs" / "dsprites.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config(f"{objective},{options.latents}")
    config.evaluate.batch_size = 128
    for key, value in (one.split("=", 1) for one in options.set):
        if key not in flat(config.to_dict()) and not key.startswith("model."):
            raise UserError(f"--set {key}={value}: there is no key {key}; see vae_attn/config.py.")
        try:
            config.update_from_flattened_dict({key: _parsed(value)})
        except (LookupError, TypeError, AttributeError, ValueError) as error:
            raise UserError(f"--set {key}={value}: {error}") from error
    config.train.steps = options.steps
    validation.validate(config)
    return config


def _parsed(value: str) -> object:
    try:
        return json.loads(value)
    except ValueError:
        return value


def _require_same(folder: pathlib.Path, settings: dict, record: DataRecord) -> None:
    """Refuses a folder of other settings or other images."""
    try:
        kept = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / _SETTINGS} cannot be read: give the folder of a call, or restore it."
        ) from error
    if kept != settings:
        raise UserError(
            f"{folder} was made with {kept}, and this call has {settings}: give those, or another "
            "folder."
        )
    record.require_same(folder)


def _keep(folder: pathlib.Path, settings: dict, record: DataRecord) -> None:
    record.keep(folder)
    with whole_files.writing(folder / _SETTINGS) as temporary:
        temporary.write_text(json.dumps(settings) + "\n", encoding="utf-8")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options of a command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", required=True)
    parser.add_argument(
        "--minutes",
        type=float,
        default=13.0,
        help="for this call (13); a 40th of a run it trains at least",
    )
    parser.add_argument("--steps", type=int, default=300_000, help="of each run (300000)")
    parser.add_argument("--seeds", type=int, default=5, help="of each objective (5)")
    parser.add_argument("--latents", type=int, default=10)
    parser.add_argument(
        "--objectives",
        type=lambda text: text.split(","),
        default=list(OBJECTIVES),
        help=f"variants of configs/dsprites.py, the first of them the baseline "
        f"({','.join(OBJECTIVES)})",
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a config key of all objectives",
    )
    parser.add_argument(
        "--seeds_at_once", type=int, default=1, help="of an objective, trained in one program (1)"
    )
    parser.add_argument(
        "--score_processes",
        type=int,
        default=None,
        help="that score models on the CPU while the training goes on (a quarter of the cores, at "
        "most 4; 0 where JAX itself runs on the CPU: the training then waits)",
    )
    parser.add_argument(
        "--beside",
        type=lambda text: [pathlib.Path(folder) for folder in text.split(",")],
        default=[],
        metavar="DIR,...",
        help="folders of other calls: trains nothing, and reports them with --workdir",
    )
    parser.add_argument(
        "--rate_seconds", type=float, default=5.0, help="for which the rate is measured (5)"
    )
    options = parser.parse_args(arguments)
    if options.steps < MARKS or options.steps % MARKS:
        parser.error(f"--steps={options.steps}: give a multiple of {MARKS}")
    for name in ("minutes", "rate_seconds"):
        if not 0 <= (value := getattr(options, name)) < math.inf:
            parser.error(f"--{name}={value}: give a finite number, 0 or more")
    for name, least in {"seeds": 1, "seeds_at_once": 1, "score_processes": 0}.items():
        if (value := getattr(options, name)) is not None and value < least:
            parser.error(f"--{name}={value}: give {least} or more")
    if wrong := [one for one in options.set if "=" not in one]:
        parser.error(f"--set {wrong[0]} must be KEY=VALUE")
    return options


def _score_processes(asked: int | None) -> int:
    if asked is not None:
        return asked
    return 0 if jax.default_backend() == "cpu" else max(1, min(4, (os.cpu_count() or 1) // 4))


def main(arguments: Sequence[str]) -> int:
    """The command line; 0 when all runs are done, or with --beside, 75 when some are left."""
    begin = time.monotonic()
    options = parse(arguments)
    configs = {objective: config_of(objective, options) for objective in options.objectives}
    first, folder = next(iter(configs.values())), pathlib.Path(options.workdir)
    with WorkdirLock() as lock:
        lock.take(folder)
        for half_written in folder.glob(".writing-*"):  # by a call that was killed
            half_written.unlink()
        data = sources.load(first)
        record = DataRecord.of(data, str(first.data.dir))
        settings = {"steps": options.steps, "latents": options.latents, "set": sorted(options.set)}
        for one in options.beside:
            _require_same(one, settings, record)
        if (folder / _SETTINGS).exists():
            _require_same(folder, settings, record)
        else:
            _keep(folder, settings, record)
        comparison = Comparison(
            configs,
            folder,
            data,
            num_seeds=options.seeds,
            deadline=begin + 60 * options.minutes,
            rate_seconds=options.rate_seconds,
            seeds_at_once=options.seeds_at_once,
            score_processes=_score_processes(options.score_processes),
            beside=options.beside,
        )
        try:
            if not options.beside:
                comparison.run()
        except OutOfTimeError:
            _LOG.info("time is over; the same command resumes.")
            return 75
        finally:
            comparison.report()
    return 0


if __name__ == "__main__":
    progress.show_log()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that its processes end with it
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.exit(str(error))
