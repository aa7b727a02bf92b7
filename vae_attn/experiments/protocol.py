"""The protocol of a run: all that the runner, the loop, scores over time and the page know of it.

There are two implementations, `anomaly.experiment` and `disentanglement.experiment`; `kinds.of`
chooses one by the data, once per run.
"""

import abc
import copy
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple
from typing import Any as PyTree

import ml_collections
import numpy as np
from jaxtyping import UInt8

from vae_attn.reporting import page
from vae_attn.reporting.svg_plots import Plot
from vae_attn.reporting.tables import Table
from vae_attn.training.task import Data

Picture = UInt8[np.ndarray, "_height _width 3"]


class Trained(NamedTuple):
    """One seed's trained model.

    Attributes:
      config: the seed's.
      workdir: the seed's.
      variables: of the VAE.
      step: of the checkpoint.
    """

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    variables: PyTree
    step: int


class Content(NamedTuple):
    """What an experiment puts on the page of a run; see `page.write`."""

    summary: str
    drawn: Mapping[str, page.Drawn | Callable[[], page.Drawn]]
    facts: Sequence[page.Fact] = ()
    explorer: dict[str, Any] | None = None
    plots: Sequence[Plot] = ()


class Experiment(abc.ABC):
    """What a run is about.

    Attributes:
      config: of the run.
      data: what the model learns from.
      probe: `probe(variables, seed=...)`, further metrics at every checkpoint; None for none.
      draw: `draw(variables)`, pictures for TensorBoard at every checkpoint; None for none.
      panels: the page's training curves: names of metrics, with what the legend calls them, by
        the title of their panel.
      y_label: of those panels.
      curves_caption: what those curves are.
    """

    config: ml_collections.ConfigDict
    data: Data
    probe: Callable[..., dict[str, float]] | None = None
    draw: Callable[[PyTree], dict[str, Picture]] | None = None
    panels: Mapping[str, Mapping[str, str]]
    y_label: ClassVar[str] = ""
    curves_caption: ClassVar[str]

    @classmethod
    @abc.abstractmethod
    def load(cls, config: ml_collections.ConfigDict) -> "Experiment":
        """The experiment with its data; raises UserError for whatever is wrong with that."""

    @staticmethod
    def members(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
        """Configs of the runs that this one stands for, by their folders; {} for itself alone."""
        del config
        return {}

    @staticmethod
    def report_members(
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        names: Mapping[str, str],
        mode: str,
    ) -> pathlib.Path:
        """Writes the tables and the page over all members; returns the path of either."""
        raise NotImplementedError

    def with_config(self, config: ml_collections.ConfigDict) -> "Experiment":
        """The same with another config, whose `attention` alone may differ."""
        other = copy.copy(self)
        other.config = config
        return other

    def counts(self) -> str:
        """How many images there are of each kind, for the line at the start."""
        return f"{len(self.data.train)} images to train on"

    def missing(self) -> Sequence[str]:
        """What this data cannot give, a sentence each, reported before the training starts."""
        return ()

    @staticmethod
    @abc.abstractmethod
    def use(
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        *,
        images: str | None,
        tiles: str | None,
    ) -> Callable[[], None]:
        """Loads a trained run without its data, and returns what then writes into its folder.

        Args:
          config: of this call, which has to fit the run's.
          workdir: of the run.
          images: that it explains, as for `run.run`; None exports the maps.
          tiles: how it explains images that are larger than the model's.

        Raises:
          UserError: where there is no such run, or it has no maps of images.
        """

    @staticmethod
    @abc.abstractmethod
    def main_scores(
        config: ml_collections.ConfigDict, scores: Mapping[str, float]
    ) -> dict[str, float]:
        """The few scores by which runs and checkpoints are compared, all better where higher."""

    def choose(self, trained: Trained) -> Mapping[str, Any]:
        """Keys of the config's `attention` that were chosen without the test set; {} for none."""
        del trained
        return {}

    def prepare(self, trained: Trained) -> None:  # noqa: B027
        """Writes what belongs beside the checkpoints, such as a calibration; by default nothing."""

    @abc.abstractmethod
    def evaluate(self, trained: Trained) -> dict[str, float]:
        """All scores of one seed's model."""

    @abc.abstractmethod
    def score_checkpoint(
        self, config: ml_collections.ConfigDict, variables: PyTree
    ) -> dict[str, float]:
        """The main scores of a seed's checkpoint."""

    @abc.abstractmethod
    def tables(self, scores: Mapping[str, float], config: ml_collections.ConfigDict) -> list[Table]:
        """The tables of a run's scores, which were computed with a config."""

    def card_tables(
        self, scores: Mapping[str, float], config: ml_collections.ConfigDict
    ) -> list[Table]:
        """Those of `tables` that stand in the run's card."""
        return self.tables(scores, config)

    @abc.abstractmethod
    def limits(self, workdir: pathlib.Path) -> Sequence[str]:
        """What whoever uses a trained model has to keep in mind, a sentence each, for the card."""

    @abc.abstractmethod
    def content(
        self, trained: Trained, scores: Mapping[str, float], workdir: pathlib.Path
    ) -> Content:
        """What the page shows: of the first seed's model, and of the scores of all seeds."""
