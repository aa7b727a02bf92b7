"""A trained VAE as an explainer: calibrated maps and scores of uint8 images."""

import dataclasses
from typing import Any as PyTree

import numpy as np
from jaxtyping import Array, Float, Shaped, UInt8

from vae_attn import backend
from vae_attn.batching import map_batches
from vae_attn.data.dataset import to_unit
from vae_attn.data.images import fit_images
from vae_attn.errors import UserError
from vae_attn.experiments import learned
from vae_attn.experiments.anomaly import calibration as calibration_lib
from vae_attn.experiments.anomaly import tiles as tiles_lib
from vae_attn.experiments.anomaly.calibration import Calibration, Variant
from vae_attn.experiments.counterpart_cache import CounterpartCache
from vae_attn.experiments.map_functions import IMAGE, LEARNED, NormalLatents, layer_maps, project
from vae_attn.experiments.maps import Mapper
from vae_attn.models.model import Model
from vae_attn.training.checkpoints import digest


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Explainer(Mapper):
    """Explains images by a trained VAE: `maps, scores = explainer(images)`.

    Attributes:
      calibration: what normal images taught (`calibrate` measures it).
    """

    calibration: Calibration

    @classmethod
    def of(
        cls,
        model: Model,
        variables: PyTree,
        calibration: Calibration,
        **options: int | CounterpartCache | learned.Head | None,
    ) -> "Explainer":
        """The explainer of a model with its calibration.

        Args:
          model: the VAE.
          variables: its parameters and batch statistics.
          calibration: of this model and these parameters.
          **options: `batch_size`, `latent_batch_size`, `counterpart_cache` and `head` of `Mapper`.
        """
        return cls(
            model=model,
            variables=variables,
            normal=NormalLatents(calibration.normal_mean, calibration.normal_variance),
            projection_steps=calibration.projection_steps,
            calibration=calibration,
            **options,
        )

    @property
    def variant(self) -> Variant:
        """Of the maps of images."""
        return self.calibration.variant

    def __call__(
        self,
        images: Shaped[np.ndarray | Array, "n height width channels"],
        counterparts: Float[np.ndarray, "n h w channels_of_model"] | None = None,
    ) -> tuple[Float[np.ndarray, "n h w"], Float[np.ndarray, "n"]]:
        """One calibrated, fused map per image, in this explainer's `variant`, and its score.

        Any number of images runs in batches of one size, and so compiles once.

        Args:
          images: of any size, grey or RGB; those that the model does not take as they are get
            resized and converted as the images of a data set are (`data.images.fit_images`).
          counterparts: of the fitted images, where they are at hand; otherwise they are computed.

        Returns:
          Maps of the model's image size, and the scores, the maps' maxima.

        Raises:
          UserError: for images that are not uint8 of 1 or 3 channels.
        """
        shape = self.model.image_shape
        images = fit_images(images, shape)
        if not len(images):
            return np.zeros((0, *shape[:2]), np.float32), np.zeros(0, np.float32)
        if (
            self.variant.needs_counterparts
            and counterparts is None
            and self.counterpart_cache is not None
        ):
            counterparts = self.counterparts(images)
        inputs = (images,) if counterparts is None else (images, counterparts)
        options = {"variant": self.variant, "projection_steps": self.projection_steps}
        options["latent_batch_size"] = self.latent_batch_size

        def explain(batch: tuple) -> tuple[Array, Array]:
            statistics = self.calibration.statistics
            return _explain_jit(
                self.model, self.variables, self.normal, statistics, self.head, *batch, **options
            )

        return map_batches(explain, inputs, self.batch_size)

    def tiled(
        self,
        image: UInt8[np.ndarray, "height width channels"],
        *,
        calibrated: str = tiles_lib.PLACE,
        overlap: float = tiles_lib.OVERLAP,
    ) -> tiles_lib.Tiled:
        """The map of one image that is larger than the model's, from overlapping tiles.

        Tiles have the model's size and are not resized: the model has to be trained on such.

        Args:
          image: grey or RGB, 0 to 255, no side smaller than the model's.
          calibrated: `place`: by what normal images give at the same place of a tile, edges and
            corners among them; `free`: by what they give anywhere, for textures, in which no place
            of a tile is special. The calibration's thresholds are for `place` alone.
          overlap: of neighbouring tiles, at least this share of a tile's side.

        Returns:
          The map in the image's own size, its score, and those of the tiles. A threshold promises
          its rate of false alarms for a tile, and not for the maximum of many.

        Raises:
          UserError: for an image smaller than a tile, or invalid options.
        """
        if calibrated not in tiles_lib.KINDS:
            raise UserError(f"calibrated={calibrated!r} must be place or free.")
        statistics = self.calibration.statistics
        if calibrated == tiles_lib.FREE:
            statistics = tiles_lib.free_of_place(statistics)
        calibration = dataclasses.replace(self.calibration, statistics=statistics)
        attend = dataclasses.replace(self, calibration=calibration, counterpart_cache=None)
        side = self.model.image_shape[0]
        return tiles_lib.blend(
            attend, image, side=side, batch_size=self.batch_size, overlap=overlap
        )

    def explain(
        self, images: UInt8[Array, "n height width channels"]
    ) -> tuple[Float[Array, "n height width"], Float[Array, "n"]]:
        """What a call does with a batch, as a pure function: jit, export or transform it."""
        return explain(
            self.model,
            self.variables,
            self.normal,
            self.calibration.statistics,
            self.head,
            images,
            variant=self.variant,
            projection_steps=self.projection_steps,
            latent_batch_size=self.latent_batch_size,
        )


def explain(
    model: Model,
    variables: PyTree,
    normal: NormalLatents,
    statistics: calibration_lib.Statistics,
    head: learned.Head | None,
    images: UInt8[Array, "n height width channels"],
    counterparts: Float[Array, "n height width channels"] | None = None,
    *,
    variant: Variant,
    projection_steps: int,
    latent_batch_size: int | None = None,
) -> tuple[Float[Array, "n height width"], Float[Array, "n"]]:
    """One calibrated map per image, and its score: a pure function.

    Args:
      model: the VAE.
      variables: its parameters and batch statistics.
      normal: the latents of normal images.
      statistics: of the raw maps of normal images, by style and layer.
      head: of the learned contrast, for variants that take it.
      images: to explain.
      counterparts: of the images, where they are at hand.
      variant: of the maps.
      projection_steps: of the counterparts.
      latent_batch_size: see `attention.channel_weights`.
    """
    x = to_unit(images)
    if counterparts is None and variant.needs_counterparts:
        counterparts = project(model, variables, x, projection_steps)
    raw = {}
    for style, layer in variant.keys:
        if style == LEARNED:
            raw[LEARNED, IMAGE] = learned.maps(model, variables, head, x, counterparts)
            continue
        options = {"styles": (style,), "latent_batch_size": latent_batch_size}
        maps = layer_maps(model, variables, normal, x, counterparts, layer=layer, **options)
        raw[style, layer] = maps[style]
    maps = variant.maps(raw, statistics)
    return maps, calibration_lib.image_score(maps)


_explain_jit = backend.jit(
    explain, static_argnames=("model", "variant", "projection_steps", "latent_batch_size")
)


def calibrate(
    model: Model,
    variables: PyTree,
    normal_images: UInt8[np.ndarray, "n_normal height width channels"],
    validation: UInt8[np.ndarray, "n_validation height width channels"],
    *,
    variant: Variant,
    projection_steps: int = 0,
    batch_size: int = 64,
    latent_batch_size: int | None = None,
    counterpart_cache: CounterpartCache | None = None,
    head: learned.Head | None = None,
    caveat: str = "",
) -> Explainer:
    """An explainer whose calibration is measured on normal images.

    Args:
      model: the VAE.
      variables: its parameters and batch statistics.
      normal_images: what it was trained on (equation 4's x).
      validation: held-out normal images, by which maps are calibrated.
      variant: of the maps of images.
      projection_steps: of `counterparts.project`; 0 takes the reconstruction.
      batch_size: images at once.
      latent_batch_size: latents differentiated at once; None is all.
      counterpart_cache: see `Mapper`.
      head: see `Mapper`; for a variant that takes it.
      caveat: see `calibration.normal_thresholds`.
    """
    options = {
        "batch_size": batch_size,
        "latent_batch_size": latent_batch_size,
        "counterpart_cache": counterpart_cache,
    }
    options["head"] = head
    mapper = Mapper(model=model, variables=variables, projection_steps=projection_steps, **options)
    normal = mapper.normal_latents(normal_images)
    mapper = dataclasses.replace(mapper, normal=normal)
    of = {"styles": tuple(variant.parts), "layers": variant.layers}
    raw = mapper.all_maps(validation, **of, baselines=False)
    active = calibration_lib.active_latents(*mapper.encode(validation))
    missing = "" if active else calibration_lib.NO_ACTIVE_LATENT
    reasons = {"missing": missing, "caveat": caveat}
    pixels, images = calibration_lib.normal_thresholds(variant, raw, **reasons)
    calibration = Calibration(
        parameters=digest(variables),
        variant=variant,
        projection_steps=projection_steps,
        normal_mean=normal.mean,
        normal_variance=normal.variance,
        statistics=calibration_lib.measure(raw),
        pixels=pixels,
        images=images,
        active_latents=active,
        head=head.digest if head is not None and variant.is_learned else "",
    )
    return Explainer.of(model, variables, calibration, **options)
