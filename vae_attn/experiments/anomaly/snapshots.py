"""The few pictures that TensorBoard shows of a run: of the same images at every checkpoint."""

import dataclasses
from typing import Any as PyTree

import ml_collections
import numpy as np
from jaxtyping import UInt8

from vae_attn import attention
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.experiments.anomaly import map_figures
from vae_attn.experiments.anomaly.calibration import variant_of
from vae_attn.experiments.maps import Mapper
from vae_attn.experiments.protocol import Picture
from vae_attn.reporting import figures, pictures
from vae_attn.training import objectives

_NORMAL_IMAGES = 64  # whose latents stand for those of all normal images


class MapSnapshots:
    """Test images, their counterparts and the run's maps over them: `snapshots(variables)`.

    The maps are raw ones of `attention.layer` in `attention.style`, each picture on a colour scale
    of its own: calibrated ones would take a pass over the data at every checkpoint.
    """

    def __init__(self, config: ml_collections.ConfigDict, data: AnomalyData) -> None:
        """Chooses the images, half of them abnormal, and compiles nothing yet."""
        test = data.test if len(data.test) else data.held_out(data.validation)
        self._images = _both_kinds(test, config.report.tensorboard_images, config.seed)
        num_normal = min(_NORMAL_IMAGES, config.evaluate.batch_size, len(data.train))
        spread = np.linspace(0, len(data.train) - 1, num_normal).astype(int)
        self._normal = np.stack([data.train[n] for n in spread])
        # A head is trained after the model: its maps are not there yet.
        self._style = variant_of(config.attention).attention_style
        self._layer = config.attention.layer
        needed = attention.needs_counterparts(self._style)
        self._mapper = Mapper(
            model=objectives.build_model(config),
            variables={},
            projection_steps=config.attention.projection_steps if needed else 0,
            batch_size=max(len(self._images), 1),
            latent_batch_size=config.attention.latent_batch_size or None,
        )

    def __call__(self, variables: PyTree) -> dict[str, Picture]:
        """One picture, by its tag: a row of images, of counterparts and of overlays."""
        mapper = dataclasses.replace(self._mapper, variables=variables)
        mapper = dataclasses.replace(mapper, normal=mapper.normal_latents(self._normal))
        counterparts = mapper.counterparts(self._images)
        maps = mapper.maps(
            self._images, styles=(self._style,), layers=(self._layer,), counterparts=counterparts
        )[self._style, self._layer]
        overlays = figures.overlay(self._images, maps, map_figures.quantile(maps))
        picture = pictures.tiled([self._images / 255, counterparts, overlays])
        return {f"maps/{self._style}/{self._layer}": picture}


def _both_kinds(test: LabelledImages, count: int, seed: int) -> UInt8[np.ndarray, "n h w c"]:
    """Random images, abnormal and normal ones in turn while there are both."""
    order = np.random.default_rng(seed).permutation(len(test))
    kinds = [order[(test.labels[order] > 0) == abnormal] for abnormal in (True, False)]
    turn = {int(n): (place, kind) for kind, of in enumerate(kinds) for place, n in enumerate(of)}
    chosen = sorted(turn, key=turn.get)[:count]
    return test.take(np.array(chosen, int)).images
