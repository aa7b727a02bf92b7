"""The experiment on ground-truth factors: what each latent means, and how well they part."""

import logging
import pathlib
from collections.abc import Mapping
from typing import Any as PyTree
from typing import ClassVar, NoReturn

import ml_collections

from vae_attn.data import sources
from vae_attn.data.factor_grid import FactorData
from vae_attn.errors import UserError
from vae_attn.experiments import faithful
from vae_attn.experiments.disentanglement import (
    diagnosis,
    factor_maps,
    report,
    representation,
    snapshots,
)
from vae_attn.experiments.maps import Mapper
from vae_attn.experiments.protocol import Content, Experiment, Trained
from vae_attn.reporting.tables import Table
from vae_attn.training import objectives, telemetry

_LOG = logging.getLogger("vae_attn")
_REMEDY = "With --config.factor.discriminator_input=standardized it does not depend on their scale."


class DisentanglementExperiment(Experiment):
    """A VAE of images with known factors; see `protocol.Experiment`."""

    curves_caption: ClassVar[str] = (
        f"{representation.QUICK_SCORE}: Kim & Mnih's score from fewer votes and images than the "
        "table's. It, the Gaussian part of the total correlation (what the codes' covariance "
        "accounts for), the latents' deviations and the active latents: at the checkpoints. The "
        "others: means of the training steps."
    )

    def __init__(self, config: ml_collections.ConfigDict, data: FactorData) -> None:
        """An experiment on data that is loaded already."""
        self.config, self.data = config, data
        self._model = objectives.build_model(config)
        self._representation = representation.Representation(
            self._model, data, batch_size=config.evaluate.batch_size
        )
        self.probe = self._representation.follow
        self.panels = _panels(config.model.latents)
        images = config.report.tensorboard_images
        self.draw = snapshots.TraversalSnapshots(config, data) if images else None

    @classmethod
    def load(cls, config: ml_collections.ConfigDict) -> "DisentanglementExperiment":
        """The experiment on the data of a config."""
        return cls(config, sources.load(config))

    @staticmethod
    def use(
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        *,
        images: str | None,
        tiles: str | None,
    ) -> NoReturn:
        """Refuses: no image is abnormal here."""
        del images, tiles
        raise UserError(
            f"--workdir={workdir} is a run on data.name={config.data.name}, where no image is "
            "abnormal: --mode=export and --images are for runs on normal images."
        )

    main_scores = staticmethod(representation.main_scores)

    def evaluate(self, trained: Trained) -> dict[str, float]:
        """All scores of one seed's model."""
        config = trained.config
        scores = self._representation.scores(trained.variables, config)
        most, layers = config.evaluate.faithful_images, tuple(config.evaluate.layers)
        images = self.data.as_uint8(self.data.sample(max(most, 1), seed=config.seed))
        mapper, codes_of = self._mapper(trained), self._representation.codes_of(trained.variables)
        scores |= faithful.evaluate(config, mapper, images, images, layers=layers)
        return scores | factor_maps.evaluate(config, mapper, self.data, codes_of, layers=layers)

    def score_checkpoint(
        self, config: ml_collections.ConfigDict, variables: PyTree
    ) -> dict[str, float]:
        """The main scores of a seed's checkpoint."""
        return self.main_scores(config, self._representation.scores(variables, config))

    def tables(self, scores: Mapping[str, float], config: ml_collections.ConfigDict) -> list[Table]:
        """One beside the values of others; whether maps are true of their latents and factors."""
        del config
        maps = (*faithful.table(scores), *factor_maps.table(scores))
        return [representation.table(scores), *maps]

    def limits(self, workdir: pathlib.Path) -> list[str]:
        """Of scores of disentanglement."""
        del workdir
        return [
            "All images were trained on: nothing here says how the model does on others.",
            "A random rotation of the true factors scores high on some of these scores: compare "
            "with the column of the true factors, and look at several.",
            "That a map is true of a latent does not say that the latent means anything.",
        ]

    def content(
        self, trained: Trained, scores: Mapping[str, float], workdir: pathlib.Path
    ) -> Content:
        """Traversals, maps of single latents, and the price of disentanglement."""
        del scores
        content = report.content(self.config, workdir, self._mapper(trained), self.data)
        if not (sentence := self._blind(workdir)):
            return content
        _LOG.warning("%s", sentence)
        return content._replace(summary=f"{content.summary} {sentence}")

    def _blind(self, workdir: pathlib.Path) -> str:
        sentence = diagnosis.blindness(telemetry.read_metrics(workdir))
        standardized = self.config.factor.discriminator_input != "codes"
        return sentence if standardized or not sentence else f"{sentence} {_REMEDY}"

    def _mapper(self, trained: Trained) -> Mapper:
        return Mapper(
            model=self._model,
            variables=trained.variables,
            projection_steps=self.config.attention.projection_steps,
            batch_size=self.config.evaluate.batch_size,
            latent_batch_size=self.config.attention.latent_batch_size or None,
        )


def _panels(latents: int) -> dict[str, dict[str, str]]:
    """Metrics of each panel of the training's curves, with what the legend calls them."""
    return {
        "disentanglement": {representation.QUICK_SCORE: ""},
        "total correlation (nats)": {
            "total_correlation": "estimated",
            diagnosis.GAUSSIAN: "Gaussian part",
        },
        "discriminator's accuracy": {"discriminator_accuracy": ""},
        "discriminator's loss (nats)": {"discriminator_loss": ""},
        "attention overlap": {"attention_disentanglement": "L_AD", "empty_maps": "empty maps"},
        "latents' deviations": {f"{diagnosis.DEVIATION}/z{k}": "" for k in range(latents)},
        "active latents": {diagnosis.ACTIVE: ""},
        "reconstruction (nats)": {"reconstruction": ""},
        "KL (nats)": {"kl": ""},
    }
