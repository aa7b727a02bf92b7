"""Runs of several objectives, one after the other, resumed and scored, in one small folder."""

import dataclasses
import functools
import logging
import math
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any as PyTree
from typing import NamedTuple

import jax
import ml_collections
import numpy as np

from vae_attn.data.factor_grid import FactorData
from vae_attn.errors import UserError
from vae_attn.experiments.disentanglement import objective_comparison, objective_rows
from vae_attn.experiments.disentanglement.objective_comparison import Scored
from vae_attn.experiments.disentanglement.objective_scoring import (
    About,
    ModelFiles,
    Scores,
    Scoring,
)
from vae_attn.reporting import figures, tables
from vae_attn.training import compact, feed, objectives, parallel, seeds, steps
from vae_attn.training.task import Task

MARKS = 4  # at as many equal parts of the training models are scored
_SAVES = 40  # in a training
_MOST_MB = 60  # for each of the seeds at once

_LOG = logging.getLogger("vae_attn")


class OutOfTimeError(Exception):
    """The minutes of this call are over; the state is saved."""


class Block(NamedTuple):
    """Runs of one objective that are trained together: consecutive seeds, in one program."""

    objective: str
    seed: int  # the first
    seeds: int = 1

    @property
    def all_seeds(self) -> range:
        """Of its runs."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def runs(self) -> set[tuple[str, int]]:
        """Objective and seed of each."""
        return {(self.objective, seed) for seed in self.all_seeds}

    def __str__(self) -> str:
        """As it is logged."""
        last = f" to {self.all_seeds[-1]}" if self.seeds > 1 else ""
        return f"{self.objective}, seed{'s' * (self.seeds > 1)} {self.seed}{last}"


@dataclasses.dataclass
class Program:
    """A compiled step of an objective, which all of its blocks of a size share.

    Attributes:
      config: of any seed.
      task: of all seeds of a block together.
      update: of `at_once` steps, over all devices.
      at_once: steps per call.
    """

    config: ml_collections.ConfigDict
    task: Task
    update: parallel.GlobalUpdateFn
    at_once: int


class Comparison:
    """The runs of a folder: those that are done as scores, and the state of those in progress."""

    def __init__(
        self,
        configs: Mapping[str, ml_collections.ConfigDict],
        folder: pathlib.Path,
        data: FactorData,
        *,
        num_seeds: int,
        deadline: float,
        rate_seconds: float,
        seeds_at_once: int = 1,
        score_processes: int = 0,
        beside: Sequence[pathlib.Path] = (),
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
          seeds_at_once: seeds of an objective in one program.
          score_processes: see `Scoring`.
          beside: further folders to report.
        """
        self._configs, self._folder, self._data = configs, folder, data
        self._num_seeds, self._seeds_at_once = num_seeds, seeds_at_once
        self._deadline, self._rate_seconds = deadline, rate_seconds
        self._score_processes, self._beside = score_processes, beside
        self._models = ModelFiles(folder)
        self._compile_seconds = self._part_seconds = 0.0  # as last seen; a part: to a save
        self._programs: dict[tuple[str, int], Program] = {}
        self._steps = next(iter(configs.values())).train.steps
        every = max(self._steps // _SAVES, 1)
        wanted = 1 if jax.default_backend() == "cpu" else 50  # see `feed.steps_at_once`
        self._at_once = math.gcd(every, self._steps // MARKS, wanted)
        self._marks = {self._steps * n // MARKS for n in range(1, MARKS + 1)}
        self._ends = {*range(every, self._steps, every), *self._marks}

    @functools.cached_property
    def _images(self) -> jax.Array:
        return parallel.replicate(self._data.train)

    def run(self) -> None:
        """Trains and scores what is missing, until the time is over."""
        config = next(iter(self._configs.values()))
        plan = self._plan({*self._scored_here, *self._models.waiting()})
        waiting = self._waiting(plan)
        if not plan and not waiting:
            return
        scoring = Scoring(config, self._data, processes=self._score_processes)
        try:
            self._score(waiting, scoring, at_least=1)
            if plan:
                self._tell(plan)
            for n, block in enumerate(plan):
                if n:
                    self._require_time_for(self._compile_seconds + self._part_seconds)
                self._train(block, scoring)
                self.report()
            self._wait_for_scores(scoring, most=0)
            if scoring.under_way:
                raise OutOfTimeError
        except OutOfTimeError:
            self._wait_for_scores(scoring, most=0)
            raise
        finally:
            scoring.close()
            if left := len(self._models.waiting()):
                _LOG.info("Models that wait for their scores: %d.", left)

    @property
    def _scored_here(self) -> set[About]:
        return {about for about, _ in objective_rows.read(self._folder / "scores.jsonl")}

    def _waiting(self, plan: list[Block]) -> list[About]:
        """Models to be scored, after the removal of those that a call left as it was killed."""
        scored, begun = self._scored_here, self._in_progress()
        again = {run: 0 for block in plan for run in block.runs}  # from which step
        if begun is not None:
            again |= dict.fromkeys(begun[0].runs, begun[1])
        for about in self._models.waiting():
            if about in scored or about.step > again.get(about[:2], self._steps):
                self._models.path(about).unlink()
        return [about for about in self._models.waiting() if about.objective in self._configs]

    def _require_time_for(self, seconds: float) -> None:
        if time.monotonic() + seconds > self._deadline:
            raise OutOfTimeError

    def _plan(self, trained: set[About]) -> list[Block]:
        """What is to be trained: what is in progress first."""
        left = {
            (objective, seed)
            for objective in self._configs
            for seed in range(self._num_seeds)
            if (objective, seed, self._steps) not in trained
        }
        plan = []
        if (begun := self._in_progress()) is not None:
            block, step = begun
            if any((*run, self._steps) not in trained for run in block.runs):
                if block.objective not in self._configs or block.all_seeds[-1] >= self._num_seeds:
                    raise UserError(
                        f"{self._state} is of {block}, at step {step}, and only one unfinished run "
                        "can be kept: include it in --objectives and --seeds, or remove the file."
                    )
                plan.append(block)
                left -= block.runs
            else:  # killed just before its end
                self._state.unlink()
        for first in range(0, self._num_seeds, self._seeds_at_once):
            for objective in self._configs:
                these = range(first, min(first + self._seeds_at_once, self._num_seeds))
                plan += _blocks(objective, [seed for seed in these if (objective, seed) in left])
        return plan

    def _tell(self, plan: list[Block]) -> None:
        """Measures the rate of the next block, and says what fits."""
        rate = self._rate(plan[0])
        left = sum(block.seeds for block in plan)
        fits = rate * max(self._deadline - time.monotonic(), 0) / self._steps
        _LOG.info(
            "%s: %.1f steps/s on %s. Runs left: %d, of %d steps each, about %.0f minutes at this "
            "rate without the scores. This call has time for %.1f.",
            *(plan[0], rate, jax.devices()[0].device_kind, left, self._steps),
            *(left * self._steps / rate / 60, fits),
        )

    def _rate(self, block: Block) -> float:
        """Steps a second, of all seeds together, of a state that is thrown away; compiles."""
        program, calls, begin = self._program(block), 0, time.monotonic()
        state = parallel.replicate(program.task.create(seed=0))
        for images, indices, _ in self._batches(block, start=0):
            state, metrics = program.update(state, images, indices)
            jax.block_until_ready(metrics)
            calls += 1
            if calls == 1:  # which compiled
                self._compile_seconds, begin = time.monotonic() - begin, time.monotonic()
            elif time.monotonic() - begin > self._rate_seconds:
                break
        measured = max(calls - 1, 1) * program.at_once * block.seeds
        return measured / max(time.monotonic() - begin, 1e-9)

    def _batches(self, block: Block, *, start: int) -> Iterator[tuple]:
        program = self._program(block)
        indices_of = functools.partial(
            program.task.batch_indices,
            seed=block.seed,
            batch_size=program.config.train.batch_size,
            num_examples=len(self._data.train),
        )
        each = ((self._images, indices_of(step=step)) for step in range(start, self._steps))
        return feed.grouped(each, at_once=program.at_once, start=start)

    def _program(self, block: Block) -> Program:
        key = block.objective, block.seeds
        if key not in self._programs:
            config = self._configs[block.objective]
            task = seeds.together(objectives.make_task(config, self._data.pixels), block.seeds)
            at_once = self._at_once
            update = parallel.parallelize(
                task.update if at_once == 1 else steps.repeated(task.update),
                mode="pmap",
                batch_size=config.train.batch_size,
            )
            self._programs[key] = Program(config, task, update, at_once)
        return self._programs[key]

    def _train(self, block: Block, scoring: Scoring) -> None:
        """Runs to their end, from where they were saved if they were."""
        program, began = self._program(block), time.monotonic()
        state, step = program.task.create(seed=block.seed), 0
        begun = self._in_progress()
        if begun is not None and begun[0] == block:
            state, step = compact.load(self._state, state), begun[1]
        state, pending = parallel.replicate(state), []
        for images, indices, made in self._batches(block, start=step):
            state, metrics = program.update(state, images, indices)
            pending.append(metrics)
            step += made
            if step not in self._ends:
                continue
            # Before the state: a call that is killed between them repeats and rewrites the others.
            self._keep_curves(block, step, pending)
            pending.clear()
            local = compact.rounded(parallel.as_local(state))
            if step in self._marks:
                self._keep_models(block, step, local.variables)
            if step < self._steps:
                compact.save(self._state, local, **block._asdict(), step=step)
            else:  # the models are enough
                self._state.unlink(missing_ok=True)
            _LOG.info("%s: step %d of %d", block, step, self._steps)
            self._part_seconds = time.monotonic() - began
            if step in self._marks:
                # So that not many more models wait than can be scored at a time.
                self._wait_for_scores(scoring, most=max(self._score_processes - block.seeds, 0))
                self._score(
                    [About(block.objective, seed, step) for seed in block.all_seeds], scoring
                )
            self._keep_scores(scoring.done())
            if step < self._steps:
                self._require_time_for(self._part_seconds)
                state, began = parallel.replicate(local), time.monotonic()

    def _keep_curves(self, block: Block, step: int, pending: list) -> None:
        """Means of each seed's metrics over the steps since the last ones."""
        rows = jax.device_get(pending)
        for n, seed in enumerate(block.all_seeds):
            about = About(block.objective, seed, step)
            means = {
                name: float(
                    np.mean([np.mean(row[name].reshape(-1, block.seeds)[:, n]) for row in rows])
                )
                for name in rows[0]
            }
            if not math.isfinite(means["loss"]):
                raise UserError(
                    f"{about.objective}, seed {seed}: the loss is {means['loss']} before step "
                    f"{step}: give a smaller train.learning_rate with --set in a new --workdir, or "
                    f"leave the objective out with --objectives and remove {self._state.name} if "
                    "it is there."
                )
            objective_rows.append(self._folder / "curves.jsonl", about, means)

    def _keep_models(self, block: Block, step: int, variables: PyTree) -> None:
        for seed, own in zip(block.all_seeds, seeds.split(variables, block.seeds), strict=True):
            self._models.keep(About(block.objective, seed, step), own)

    def _score(self, models: Sequence[About], scoring: Scoring, *, at_least: int = 0) -> None:
        for n, about in enumerate(models):
            if n >= at_least:
                self._require_time_for(0.0)  # the files of the others wait
            config = self._configs[about.objective].copy_and_resolve_references()
            config.seed = about.seed
            scoring.submit(about, config, self._models.path(about))
            self._keep_scores(scoring.done())

    def _wait_for_scores(self, scoring: Scoring, *, most: int) -> None:
        """Until no more than `most` are to come, or the time is over."""
        self._keep_scores(scoring.done(seconds=self._deadline - time.monotonic(), most=most))

    def _keep_scores(self, found: Iterable[tuple[About, Scores]]) -> None:
        for about, scores in found:
            curves = dict(objective_rows.read(self._folder / "curves.jsonl"))
            objective_rows.append(self._folder / "scores.jsonl", about, curves[about] | scores)
            self._models.path(about).unlink()

    def _in_progress(self) -> tuple[Block, int] | None:
        """What the state is of, and its step."""
        about = compact.read(self._state)
        if about is None:
            return None
        step = about.pop("step")
        return Block(**about), step

    @property
    def _state(self) -> pathlib.Path:
        return self._folder / "in_progress.safetensors"

    def scored(self) -> list[Scored]:
        """All models that were scored."""
        return self._kept("scores.jsonl")

    def _kept(self, name: str) -> list[Scored]:
        """The rows of all folders, in the order of objectives, seeds and steps."""
        found = objective_rows.joined([folder / name for folder in (self._folder, *self._beside)])
        order = list(dict.fromkeys([*self._configs, *(about.objective for about in found)]))
        return [
            Scored(**about._asdict(), scores=found[about])
            for about in sorted(found, key=lambda a: (order.index(a.objective), a.seed, a.step))
        ]

    def report(self) -> None:
        """Writes `table.md` and `curves.png`, and checks the folder's size."""
        if models := self.scored():
            found = objective_comparison.tables(models, baseline=next(iter(self._configs)))
            latents = next(iter(self._configs.values())).model.latents
            title = f"{self._data.name}, {self._steps:,} steps, {latents} latents"
            tables.write_markdown(found, self._folder / "table.md", title=title)
            drawn = objective_comparison.figure(self._kept("curves.jsonl"), models)
            figures.save(drawn, self._folder / "curves.png")
        else:
            _LOG.info("%s: no model is scored yet.", self._folder)
        size = sum(path.stat().st_size for path in self._folder.iterdir()) / 1e6
        _LOG.info("%s holds %.1f MB", self._folder, size)
        begun = self._in_progress()
        most = _MOST_MB * max(self._seeds_at_once, begun[0].seeds if begun else 1)
        if size > most:
            raise UserError(
                f"--workdir={self._folder} holds {size:.0f} MB, more than {most}: it has files "
                "of other commands, models that wait for their scores (give more --minutes), or a "
                "larger model than this is made for."
            )


def _blocks(objective: str, seeds_of: list[int]) -> list[Block]:
    """Consecutive seeds together."""
    blocks: list[Block] = []
    for seed in seeds_of:
        if blocks and seed == blocks[-1].all_seeds[-1] + 1:
            blocks[-1] = blocks[-1]._replace(seeds=blocks[-1].seeds + 1)
        else:
            blocks.append(Block(objective, seed))
    return blocks
