"""The forms of L_AD, the attention disentanglement loss: how alike the maps of two latents are."""

import dataclasses
import types
from collections.abc import Callable, Mapping
from typing import Any as PyTree

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vae_attn import attention, attributions, losses
from vae_attn.errors import UserError
from vae_attn.models.model import Model

# Of two latents' maps, (batch, h, w, ...) each, to one value per image.
Likeness = Callable[..., Float[Array, "batch"]]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What maps are made of.

    Attributes:
      model: the VAE.
      variables: its own.
      layer: of the encoder, at which the published maps are taken.
      images: x.
      features: of the images, at the layer.
      others: x', images of the data that the exact maps compare x with.
    """

    model: Model
    variables: PyTree
    layer: str
    images: Float[Array, "batch height width channels"]
    features: Float[Array, "batch h w k"]
    others: Float[Array, "batch height width channels"]

    def mean(self, images: Float[Array, "batch height width channels"]) -> Array:
        """The latents' means of images."""
        return self.model.apply(self.variables, images, method="encode")[0]


@dataclasses.dataclass(frozen=True)
class Form:
    """A form of L_AD.

    Attributes:
      maps: `maps(seen, chosen)`, of the chosen latents, (batch, chosen, ...).
      likeness: of two latents' maps, one value per image, 0 to 1.
      title: for pages and tables.
      source: where it comes from.
    """

    maps: Callable[[Seen, Int[Array, "chosen"]], Float[Array, "batch chosen ..."]]
    likeness: Likeness
    title: str
    source: str


def _paper_maps(seen: Seen, chosen: Int[Array, "chosen"]) -> Array:
    # Differentiable through alpha, so that its gradient reaches the weights above the layer
    # (through alpha) as well as those below (through the features). No `DenseMean`: it pays for
    # many latents, and here are few.
    return attention.paper_maps(
        lambda a: seen.model.apply(seen.variables, a, seen.layer, method="head")[0],
        seen.features,
        chosen=chosen,
    )


def _exact_maps(seen: Seen, chosen: Int[Array, "chosen"]) -> Array:
    try:
        maps = attributions.deeplift(seen.mean, seen.images, seen.others, chosen=chosen)
    except NotImplementedError as error:  # of a model of one's own
        raise UserError(
            f"factor.ad_form takes exact maps, which this model cannot give ({error}): set "
            "factor.ad_form=jacobian_cosine or paper."
        ) from error
    return maps.sum(axis=-1)  # over the channels, as everywhere


def _jacobian_rows(seen: Seen, chosen: Int[Array, "chosen"]) -> Array:
    z, pullback = jax.vjp(seen.mean, seen.images)

    def row(latent: Int[Array, ""]) -> Array:
        # Images do not interact: one cotangent for the batch gives each image its own row.
        one_hot = jax.nn.one_hot(latent, z.shape[1], dtype=z.dtype)
        return pullback(jnp.broadcast_to(one_hot, z.shape))[0]

    return jax.vmap(row, out_axes=1)(chosen)


def _overlap_of_magnitudes(*, first: Array, second: Array) -> Array:
    return losses.attention_disentanglement(first=jnp.abs(first), second=jnp.abs(second))


FORMS: Mapping[str, Form] = types.MappingProxyType(
    {
        "paper": Form(
            _paper_maps,
            losses.attention_disentanglement,
            "overlap of the published maps",
            "Liu et al. (2020), section 3.3",
        ),
        "exact_overlap": Form(
            _exact_maps,
            _overlap_of_magnitudes,
            "overlap of exact maps' magnitudes",
            "ours: Liu et al.'s overlap, of DeepLIFT's maps (Shrikumar et al. 2017) between two "
            "images",
        ),
        "exact_cosine": Form(
            _exact_maps,
            losses.squared_cosine,
            "squared cosine of exact signed maps",
            "ours: orthogonality of DeepLIFT's maps (Shrikumar et al. 2017) between two images",
        ),
        "jacobian_cosine": Form(
            _jacobian_rows,
            losses.squared_cosine,
            "squared cosine of the Jacobian's rows",
            "ours: orthogonality of the rows of dz/dx, the exact maps of small changes",
        ),
    }
)


def attention_loss(
    form: str, seen: Seen, pairs: Int[Array, "pairs 2"]
) -> tuple[Float[Array, "batch"], Float[Array, "batch"]]:
    """L_AD per image, the mean over the pairs; and the share of the image's maps that are empty.

    An empty map overlaps with no other, so that emptying maps is a way to lower the loss that
    disentangles nothing.

    Args:
      form: of `FORMS`.
      seen: what the maps are made of.
      pairs: of latents.
    """
    maps = FORMS[form].maps(seen, pairs.ravel())
    # Pair after pair, so that the sum over a pair's pixels stays within it.
    per_pair = [
        FORMS[form].likeness(first=maps[:, 2 * n], second=maps[:, 2 * n + 1])
        for n in range(len(pairs))
    ]
    empty = (maps == 0).reshape(*maps.shape[:2], -1).all(axis=2)
    return jnp.mean(jnp.stack(per_pair), axis=0), empty.mean(axis=1, dtype=maps.dtype)
