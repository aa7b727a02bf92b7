"""The few pictures that TensorBoard shows of a run: of the same images at every checkpoint."""

import math

import jax
import ml_collections
import numpy as np
from jaxtyping import Array, Float, PyTree, UInt8

from vae_attn import attention, backend
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.dsprites import DSprites
from vae_attn.experiments.anomaly import map_figures
from vae_attn.experiments.anomaly.calibration import Calibration, variant_of
from vae_attn.experiments.anomaly.explainer import Explainer, decoded
from vae_attn.experiments.disentanglement import report as factor_report
from vae_attn.reporting import figures
from vae_attn.training import loop
from vae_attn.training.steps import to_unit

Picture = UInt8[np.ndarray, "_height _width 3"]

_SIDE = 96  # pixels; smaller images are enlarged, by a whole factor
_NORMAL_IMAGES = 64  # whose latents stand for those of all normal images


class MapSnapshots:
    """Test images, their counterparts and the run's maps over them: `snapshots(variables)`.

    The maps are raw ones of `attention.layer` in `attention.style`, each picture on a colour scale
    of its own: calibrated ones would take a pass over the data at every checkpoint.
    """

    def __init__(self, config: ml_collections.ConfigDict, data: AnomalyData) -> None:
        """Chooses the images, half of them abnormal, and compiles nothing yet."""
        count = config.report.tensorboard_images
        self._images = _both_kinds(data.test, count, config.seed)
        num_normal = min(_NORMAL_IMAGES, config.evaluate.batch_size, len(data.train))
        spread = np.linspace(0, len(data.train) - 1, num_normal).astype(int)
        self._normal = np.stack([data.train[n] for n in spread])
        style, layer = config.attention.style, config.attention.layer
        self._name = f"maps/{style}/{layer}"
        model = loop.build_model(config)
        steps = config.attention.projection_steps if attention.needs_counterparts(style) else 0

        @backend.jit
        def explain(
            variables: PyTree, images: UInt8[Array, "n h w c"], normal: UInt8[Array, "m h w c"]
        ) -> tuple[Float[Array, "n h w c"], Float[Array, "n h w"]]:
            x = to_unit(images)
            counterparts = decoded(model, variables, x, steps)
            codes = model.apply(variables, to_unit(normal), method="encode")
            normal_mean, normal_variance = attention.normal_statistics(*codes)
            attend = attention.make_attention_fn(
                features=lambda v, x: model.apply(v, x, layer, method="features"),
                head=lambda v, a: model.apply(v, a, layer, method="head"),
                style=style,
                dense_mean=model.dense_mean(layer),
                normal_mean=normal_mean,
                normal_variance=normal_variance,
                latent_batch_size=config.attention.latent_batch_size or None,
            )
            return counterparts, attend(variables, x, counterparts)

        self._explain = explain

    def __call__(self, variables: PyTree) -> dict[str, Picture]:
        """One picture, by its tag: a row of images, of counterparts and of overlays."""
        found = jax.device_get(self._explain(variables, self._images, self._normal))
        counterparts, maps = found
        overlays = figures.overlay(self._images, maps, map_figures.quantile(maps))
        return {self._name: _tiled([self._images / 255, counterparts, overlays])}


class TraversalSnapshots:
    """What the most responsive latents draw, from a few images: `snapshots(variables)`."""

    def __init__(self, config: ml_collections.ConfigDict, data: DSprites) -> None:
        """Chooses the images and compiles nothing yet."""
        images = data.sample(config.report.tensorboard_images, seed=config.seed)
        self._images = factor_report.pixels(images)
        self._sample = factor_report.pixels(data.sample(factor_report.RESPONSE_IMAGES))
        unknown = np.zeros(config.model.latents, np.float32)
        calibration = Calibration(
            "", variant_of(config.attention), 0, unknown, unknown, {}, math.nan, math.nan
        )
        self._explainer = Explainer(
            loop.build_model(config), {}, calibration, batch_size=config.evaluate.batch_size
        )

    def __call__(self, variables: PyTree) -> dict[str, Picture]:
        """A picture an image, by its tag: a row a latent, which goes from end to end."""
        self._explainer.variables = variables  # an argument of what is compiled
        response = factor_report.respond(self._explainer, self._sample)
        drawn = factor_report.traverse(
            self._explainer, self._images, response.latents, response.centre, response.spread
        )
        return {f"traversals/image_{n}": _tiled(list(rows)) for n, rows in enumerate(drawn)}


def _both_kinds(test: LabelledImages, count: int, seed: int) -> UInt8[np.ndarray, "n h w c"]:
    """Random images, abnormal and normal ones in turn while there are both."""
    order = np.random.default_rng(seed).permutation(len(test))
    kinds = [order[(test.labels[order] > 0) == abnormal] for abnormal in (True, False)]
    turn = {int(n): (place, kind) for kind, of in enumerate(kinds) for place, n in enumerate(of)}
    chosen = sorted(turn, key=turn.get)[:count]
    return test.take(np.array(chosen, int)).images


def _tiled(rows: list[Float[np.ndarray, "n height width _"]]) -> Picture:
    """Rows of images in [0, 1], grey or RGB, as one picture."""
    shape = (*rows[0].shape[:3], 3)
    grid = np.stack([np.broadcast_to(row, shape) for row in rows])
    factor = max(1, _SIDE // min(shape[1:3]))
    grid = grid.repeat(factor, axis=2).repeat(factor, axis=3)
    return np.asarray(figures.tiled(np.rint(255 * np.clip(grid, 0, 1)).astype(np.uint8)))
