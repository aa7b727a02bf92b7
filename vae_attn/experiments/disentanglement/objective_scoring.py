"""Models of a comparison of objectives between training and scores: a file each until then."""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import pathlib
import signal
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
        found = [compact.read(path) for path in sorted(self._folder.glob("model-*.safetensors"))]
        return sorted(About(**about) for about in found)


class Scorer:
    """Scores models in files."""

    def __init__(self, data: FactorData) -> None:
        """Compiles nothing yet.

        Args:
          data: what the models learned.
        """
        self._data = data
        # Of one objective after the other, so that each compiles once.
        self._learned = functools.lru_cache(self._representation)

    def _representation(self, model, batch_size: int) -> representation.Representation:
        return representation.Representation(model, self._data, batch_size=batch_size)

    def __call__(self, config: ml_collections.ConfigDict, path: pathlib.Path) -> Scores:
        """`model_scores.measure` of the model in a file.

        Args:
          config: of its run.
          path: of the file.
        """
        task = objectives.make_task(config, self._data.pixels)
        template = jax.eval_shape(lambda: task.create(seed=0).variables)
        model = objectives.build_model(config)
        return model_scores.measure(
            config,
            compact.load(path, template),
            model=model,
            data=self._data,
            learned=self._learned(model, config.evaluate.batch_size),
        )


class Scoring:
    """Scores models in processes of their own, on the CPU, while the caller trains.

    With no such process each model is scored at once by the caller.
    """

    def __init__(
        self, config: ml_collections.ConfigDict, data: FactorData, *, processes: int
    ) -> None:
        """Starts the processes, which load the data themselves.

        Args:
          config: of any of the models.
          data: what they learned.
          processes: how many; each needs the memory of the data.
        """
        self._here, self._pool = Scorer(data), None
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
          UserError: if a process was ended from outside, as in `done`.
        """
        if self._pool is not None:
            with _unbroken():
                self._under_way[about] = self._pool.submit(_in_this_process, config, path)
            return
        self._under_way[about] = concurrent.futures.Future()
        self._under_way[about].set_result(self._here(config, path))

    def done(self, *, seconds: float = 0.0) -> dict[About, Scores]:
        """What has been scored since the last call.

        Args:
          seconds: to wait at most until all are; 0 for not at all.
        """
        found, _ = concurrent.futures.wait(self._under_way.values(), timeout=max(seconds, 0))
        ready = [about for about, future in self._under_way.items() if future in found]
        with _unbroken():
            return {about: self._under_way.pop(about).result() for about in ready}

    @property
    def is_under_way(self) -> bool:
        """Whether scores are still to come."""
        return bool(self._under_way)

    def close(self) -> None:
        """Ends the processes at once; what they were at has no scores, and its file stays."""
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
            "a process that scores models was ended, perhaps for want of memory: give a smaller "
            "--score_processes; the same command resumes."
        ) from error


_scorer: Scorer | None = None  # of a process of `Scoring`


def _begin(config: ml_collections.ConfigDict) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # which the caller acts on
    jax.config.update("jax_platforms", "cpu")
    global _scorer
    _scorer = Scorer(sources.load(config))


def _in_this_process(config: ml_collections.ConfigDict, path: pathlib.Path) -> Scores:
    return _scorer(config, path)
