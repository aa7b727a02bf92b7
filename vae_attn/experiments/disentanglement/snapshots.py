"""What TensorBoard shows of a run on factors: traversals of the same images at every checkpoint."""

import dataclasses
from typing import Any as PyTree

import ml_collections

from vae_attn.data.factor_grid import FactorData
from vae_attn.experiments.disentanglement import report
from vae_attn.experiments.maps import Mapper
from vae_attn.experiments.protocol import Picture
from vae_attn.reporting import pictures
from vae_attn.training import objectives


class TraversalSnapshots:
    """What the most responsive latents draw, from a few images: `snapshots(variables)`."""

    def __init__(self, config: ml_collections.ConfigDict, data: FactorData) -> None:
        """Chooses the images and compiles nothing yet."""
        images = data.sample(config.report.tensorboard_images, seed=config.seed)
        self._images = data.as_uint8(images)
        self._sample = data.as_uint8(data.sample(report.RESPONSE_IMAGES))
        self._mapper = Mapper(
            model=objectives.build_model(config),
            variables={},
            batch_size=config.evaluate.batch_size,
        )

    def __call__(self, variables: PyTree) -> dict[str, Picture]:
        """A picture per image, by its tag: a row per latent, which goes from end to end."""
        mapper = dataclasses.replace(self._mapper, variables=variables)
        response = report.respond(mapper, self._sample)
        drawn = report.traverse(
            mapper, self._images, response.latents, response.centre, response.spread
        )
        return {f"traversals/image_{n}": pictures.tiled(list(rows)) for n, rows in enumerate(drawn)}
