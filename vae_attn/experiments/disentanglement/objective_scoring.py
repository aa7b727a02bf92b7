"""Scores the models of a comparison of objectives; one that waits for its scores is a file."""

import concurrent.futures
import contextlib
import io
import multiprocessing
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any as PyTree
from typing import NamedTuple

import jax
import ml_collections

from vae_attn.data import sources
from vae_attn.data.factor_grid import FactorData
from vae_attn.errors import UserError
from vae_attn.experiments.disentanglement import model_scores, representation
from vae_attn.training import compact, objectives

Scores = dict[str, float]


class About(NamedTuple):
    """Which model of the comparison: its objective, seed and step."""

    objective: str
    seed: int
    step: int


class ModelFiles:
    """The models in a folder that wait for their scores, some 2 MB each."""

    def __init__(self, folder: pathlib.Path) -> None:
        """Reads nothing yet."""
        self._folder = folder

    def path(self, about: About) -> pathlib.Path:
        """Where a model is, or would be."""
        name = f"model-{about.objective}-{about.seed}-{about.step}.safetensors"
        return self._folder / name

    def keep(self, about: About, variables: PyTree) -> None:
        """Writes the VAE's variables, whole or not at all."""
        compact.save(self.path(about), variables, **about._asdict())

    def waiting(self) -> list[About]:
        """All that are there; raises UserError for a broken file."""
        found = []
        for path in sorted(self._folder.glob("model-*.safetensors")):
            with _naming(path):
                found.append(About(**compact.read(path)))
        return sorted(found)


@contextlib.contextmanager
def _naming(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except (UserError, TypeError) as error:  # TypeError: it says other things of itself
        raise UserError(
            f"{path} is broken, or of another model: remove it; its scores will be missing, and if "
            "it is of a run's last step, that run starts from its beginning."
        ) from error


def score(config: ml_collections.ConfigDict, path: pathlib.Path, data: FactorData) -> Scores:
    """`model_scores.measure` of the model in a file.

    Args:
      config: of its run.
      path: of the file.
      data: what it learned.

    Raises:
      UserError: if the file is broken.
    """
    task = objectives.make_task(config, data.pixels)
    template = jax.eval_shape(lambda: task.create(seed=0).variables)
    with _naming(path):
        variables = compact.load(path, template)
    model = objectives.build_model(config)
    learned = representation.Representation(model, data, batch_size=config.evaluate.batch_size)
    return model_scores.measure(config, variables, model=model, data=data, learned=learned)


class Scoring:
    """Scores models in processes of their own, on the CPU, while the caller trains.

    With 0 processes the caller scores each model itself, in `submit`.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, data: FactorData, *, processes: int
    ) -> None:
        """Starts nothing yet: processes begin as models come, and load the data themselves.

        Args:
          config: of any of the models.
          data: what they learned.
          processes: at most how many; each needs the memory of the data.
        """
        self._data, self._pool = data, None
        self._others = set(multiprocessing.active_children())
        if processes:
            self._pool = concurrent.futures.ProcessPoolExecutor(
                processes,
                # A fork would share the accelerator's context.
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(config,),
            )
        self._under_way: dict[About, concurrent.futures.Future] = {}

    def submit(self, about: About, config: ml_collections.ConfigDict, path: pathlib.Path) -> None:
        """Has a model scored; `done` gives the scores.

        Args:
          about: which it is.
          config: of its run.
          path: of its file.

        Raises:
          UserError: as in `done`.
        """
        if self._pool is not None:
            with _unbroken():
                self._under_way[about] = self._pool.submit(_score, config, path)
            return
        self._under_way[about] = concurrent.futures.Future()
        self._under_way[about].set_result(score(config, path, self._data))

    def done(self, *, seconds: float = 0.0, most: int = 0) -> Iterator[tuple[About, Scores]]:
        """What has been scored since the last call, one by one.

        Args:
          seconds: to wait at most.
          most: wait only until no more than these are under way.

        Raises:
          UserError: if a process was ended from outside, or a model's file is broken.
        """
        end = time.monotonic() + seconds
        while True:
            for about in [one for one, future in self._under_way.items() if future.done()]:
                with _unbroken():
                    scores = self._under_way.pop(about).result()
                yield about, scores
            left = end - time.monotonic()
            if left <= 0 or len(self._under_way) <= most:
                return
            first = concurrent.futures.FIRST_COMPLETED
            concurrent.futures.wait(self._under_way.values(), timeout=left, return_when=first)

    @property
    def under_way(self) -> int:
        """How many scores are still to come."""
        return len(self._under_way)

    def close(self) -> None:
        """Ends the processes at once; unfinished scores are lost, their models' files stay."""
        if self._pool is None:
            return
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - self._others:
            process.terminate()


@contextlib.contextmanager
def _unbroken() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise UserError(
            "a process that scores models has ended; unless its error stands above, perhaps for "
            "lack of memory: give a smaller --score_processes. The same command resumes."
        ) from error


_data: FactorData | None = None  # of a process of `Scoring`


def _begin(config: ml_collections.ConfigDict) -> None:
    """Prepares a process of `Scoring`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the caller acts on
    threading.Thread(target=_end_with_the_caller, daemon=True).start()
    os.nice(10)  # behind the thread that gives the accelerator its work
    jax.config.update("jax_platforms", "cpu")
    global _data
    _data = sources.load(config)
    sys.stderr = io.StringIO()  # no terminal: else each would draw its progress there


def _end_with_the_caller() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _score(config: ml_collections.ConfigDict, path: pathlib.Path) -> Scores:
    return score(config, path, _data)
