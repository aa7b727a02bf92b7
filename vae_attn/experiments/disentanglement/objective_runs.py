"""Runs of several objectives, one after the other, resumed and scored, in one small folder."""

import dataclasses
import functools
import json
import logging
import math
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any as PyTree
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from vae_attn import whole_files
from vae_attn.data.factor_grid import FactorData
from vae_attn.errors import UserError
from vae_attn.experiments.disentanglement import (
    model_scores,
    objective_comparison,
    representation,
)
from vae_attn.experiments.disentanglement.objective_comparison import Scored
from vae_attn.reporting import figures, tables
from vae_attn.training import compact, feed, objectives, parallel, steps
from vae_attn.training.task import Task

MARKS = 4  # at as many equal parts of the training models are scored
_SAVES = 40  # in a training
_MOST_MB = 60

_LOG = logging.getLogger("vae_attn")


class OutOfTimeError(Exception):
    """The minutes of this call are over; the state is saved."""


class About(NamedTuple):
    """Which model of the comparison: its objective, seed and step."""

    objective: str
    seed: int
    step: int


@dataclasses.dataclass
class Program:
    """An objective's compiled step, which all of its seeds share.

    Attributes:
      config: of any seed.
      task: of the objective.
      update: of `at_once` steps, over all devices.
      at_once: steps per call.
      learned: what scores its models.
    """

    config: ml_collections.ConfigDict
    task: Task
    update: parallel.GlobalUpdateFn
    at_once: int
    learned: representation.Representation


class Comparison:
    """The runs of a folder: those that are done as scores, and the state of one in progress."""

    def __init__(
        self,
        configs: Mapping[str, ml_collections.ConfigDict],
        folder: pathlib.Path,
        data: FactorData,
        *,
        num_seeds: int,
        deadline: float,
        rate_seconds: float,
    ) -> None:
        """Compiles nothing yet.

        Args:
          configs: by the name of the objective, the first of which is the baseline; all of the same
            data, model's size and number of steps, a multiple of `MARKS`.
          folder: of the comparison.
          data: what is learned.
          num_seeds: of each objective.
          deadline: of `time.monotonic`.
          rate_seconds: for which the rate is measured.
        """
        self._configs, self._folder, self._data = configs, folder, data
        self._num_seeds, self._deadline = num_seeds, deadline
        self._rate_seconds = rate_seconds
        self._images = parallel.replicate(data.train)
        self._programs: dict[str, Program] = {}
        self._steps = next(iter(configs.values())).train.steps
        every = max(self._steps // _SAVES, 1)
        wanted = 1 if jax.default_backend() == "cpu" else 10  # see `feed.steps_at_once`
        self._at_once = math.gcd(every, self._steps // MARKS, wanted)
        self._ends = {*range(every, self._steps, every), *self._marks}

    @property
    def _marks(self) -> list[int]:
        return [self._steps * n // MARKS for n in range(1, MARKS + 1)]

    def run(self) -> None:
        """Trains and scores what is missing, until the time is over."""
        done = {(one.objective, one.seed, one.step) for one in self.scored()}
        missing = [
            (objective, seed)
            for seed in range(self._num_seeds)
            for objective in self._configs
            if (objective, seed, self._steps) not in done
        ]
        begun = self._in_progress()
        if begun is not None and (begun.objective, begun.seed, self._steps) not in done:
            if (begun.objective, begun.seed) not in missing:
                raise UserError(
                    f"{self._state} is of {begun.objective}, seed {begun.seed}, at step "
                    f"{begun.step}, and only one unfinished run can be kept: include it in "
                    "--objectives and --seeds, or remove the file."
                )
            missing.sort(key=lambda run: run != (begun.objective, begun.seed))
        if missing:
            self._tell(missing)
        for objective, seed in missing:
            self._train(objective, seed, done)
            self.report()

    def _tell(self, missing: list[tuple[str, int]]) -> None:
        """Measures the rate of the next objective, and says what fits."""
        objective, _ = missing[0]
        rate = self._rate(self._program(objective))
        left = len(missing) * self._steps
        fits = rate * max(self._deadline - time.monotonic(), 0) / self._steps
        _LOG.info(
            "%s: %.1f steps/s on %s; %d runs, %d steps, are left: about %.0f minutes at this rate "
            "without the scores. This call has time for %.1f runs of %d steps.",
            *(objective, rate, jax.devices()[0].device_kind, len(missing), left, left / rate / 60),
            *(fits, self._steps),
        )

    def _rate(self, program: Program) -> float:
        """Steps a second, of a state that is thrown away; compiles."""
        state, calls = parallel.replicate(program.task.create(seed=0)), 0
        batches = self._batches(program, seed=0, start=0)
        for images, indices, _ in batches:
            state, metrics = program.update(state, images, indices)
            jax.block_until_ready(metrics)
            calls += 1
            if calls == 1:  # which compiled
                begin = time.monotonic()
            elif time.monotonic() - begin > self._rate_seconds:
                break
        measured = max(calls - 1, 1) * program.at_once
        return measured / max(time.monotonic() - begin, 1e-9)

    def _batches(self, program: Program, *, seed: int, start: int) -> Iterator[tuple]:
        indices_of = functools.partial(
            program.task.batch_indices,
            seed=seed,
            batch_size=program.config.train.batch_size,
            num_examples=len(self._data.train),
        )
        each = ((self._images, indices_of(step=step)) for step in range(start, self._steps))
        return feed.grouped(each, at_once=program.at_once, start=start)

    def _program(self, objective: str) -> Program:
        if objective not in self._programs:
            config = self._configs[objective]
            task = objectives.make_task(config, self._data.pixels)
            at_once = self._at_once
            update = parallel.parallelize(
                task.update if at_once == 1 else steps.repeated(task.update),
                mode="pmap",
                batch_size=config.train.batch_size,
            )
            learned = representation.Representation(
                objectives.build_model(config),
                self._data,
                batch_size=config.evaluate.batch_size,
            )
            self._programs[objective] = Program(config, task, update, at_once, learned)
        return self._programs[objective]

    def _train(self, objective: str, seed: int, done: set[tuple[str, int, int]]) -> None:
        """One run to its end, from where it was saved if it was."""
        program, about = self._program(objective), About(objective, seed, 0)
        state, begun = program.task.create(seed=seed), self._in_progress()
        if begun is not None and (begun.objective, begun.seed) == (objective, seed):
            state, about = compact.load(self._state, state), begun
            self._score_if_due(program, state.variables, about, done)
        state, pending = parallel.replicate(state), []
        for images, indices, made in self._batches(program, seed=seed, start=about.step):
            state, metrics = program.update(state, images, indices)
            pending.append(metrics)
            about = about._replace(step=about.step + made)
            if about.step not in self._ends:
                continue
            # Before the state: a call that is killed between both repeats and rewrites it.
            self._append("curves.jsonl", about, _means(pending, about))
            pending.clear()
            local = compact.rounded(parallel.as_local(state))
            compact.save(self._state, local, **about._asdict())
            _LOG.info("%s, seed %d: step %d of %d", *about, self._steps)
            self._score_if_due(program, local.variables, about, done)
            if time.monotonic() > self._deadline:
                raise OutOfTimeError
            state = parallel.replicate(local)
        self._state.unlink(missing_ok=True)

    def _score_if_due(
        self, program: Program, variables: PyTree, about: About, done: set[tuple[str, int, int]]
    ) -> None:
        if about.step not in self._marks or tuple(about) in done:
            return
        config = program.config.copy_and_resolve_references()
        config.seed = about.seed
        scores = model_scores.measure(
            config,
            variables,
            model=objectives.build_model(config),
            data=self._data,
            learned=program.learned,
        )
        curves = dict(_rows(self._folder / "curves.jsonl"))
        self._append("scores.jsonl", about, curves[about] | scores)

    def _in_progress(self) -> About | None:
        about = compact.read(self._state)
        return None if about is None else About(**about)

    @property
    def _state(self) -> pathlib.Path:
        return self._folder / "in_progress.safetensors"

    def _append(self, name: str, about: About, values: dict[str, float]) -> None:
        # One row for each, whatever a call that was killed has written before.
        rows = [row for row in _rows(self._folder / name) if row[0] != about]
        rows.append((about, values))
        with whole_files.writing(self._folder / name) as temporary:
            lines = [json.dumps(row._asdict() | {"values": kept}) for row, kept in rows]
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def scored(self) -> list[Scored]:
        """All models that were scored."""
        return self._kept("scores.jsonl")

    def _kept(self, name: str) -> list[Scored]:
        rows = _rows(self._folder / name)
        return [Scored(**about._asdict(), scores=values) for about, values in rows]

    def report(self) -> None:
        """Writes `table.md` and `curves.png`, and checks the folder's size."""
        if models := self.scored():
            found = objective_comparison.tables(models, baseline=next(iter(self._configs)))
            latents = next(iter(self._configs.values())).model.latents
            title = f"{self._data.name}, {self._steps:,} steps, {latents} latents"
            tables.write_markdown(found, self._folder / "table.md", title=title)
            drawn = objective_comparison.figure(self._kept("curves.jsonl"), models)
            figures.save(drawn, self._folder / "curves.png")
        size = sum(path.stat().st_size for path in self._folder.iterdir()) / 1e6
        _LOG.info("%s holds %.1f MB", self._folder, size)
        if size > _MOST_MB:
            raise UserError(
                f"--workdir={self._folder} holds {size:.0f} MB, more than {_MOST_MB}: it has files "
                "of other commands, or a larger model than this is made for."
            )


def _means(pending: list, about: About) -> dict[str, float]:
    """Means of the metrics over the steps since the last ones."""
    rows = jax.device_get(pending)
    means = {k: float(np.mean([np.mean(row[k]) for row in rows])) for k in rows[0]}
    if not math.isfinite(means["loss"]):
        raise UserError(
            f"{about.objective}, seed {about.seed}: the loss is {means['loss']} before step "
            f"{about.step}: leave it out with --objectives, or give a smaller "
            "train.learning_rate with --set in a new --workdir."
        )
    return means


def _rows(path: pathlib.Path) -> list[tuple[About, dict[str, float]]]:
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(About(row["objective"], row["seed"], row["step"]), row["values"]) for row in rows]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): restore it, or give another --workdir."
        ) from error
