"""The learned contrast: a small network that learns what matters of an image and its counterpart.

`contrast` weighs all differences between the features A of an image and B of its normal
counterpart alike. This head has seen anomalies drawn on normal images (`data.drawn_anomalies`) and
says of each pixel how likely it is one of them. From pixels and from several layers it takes

    log(1 + u / mean of u over normal images at that place and channel)   for u = |A - B|, A+, A-

where A+ and A- are the positive and the negative part of A (of pixels, x and 1 - x): a texture that
the model does not reconstruct differs everywhere, and A says what kind of place it is. The head
brings them to half the image's size by a 1 x 1 convolution each, and adds two of 3 x 3. Single
latents have no part in it: their exact maps (`attributions`) explain why an image deviates.
"""

import json
import pathlib
from collections.abc import Mapping
from typing import Any as PyTree

import flax.linen as nn
import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_attn import whole_files
from vae_attn.models.model import Model
from vae_attn.training.checkpoints import digest

INPUTS = "difference, positive part, negative part"  # of features: what a kept head was made for
FILE = "learned.npz"  # in the workdir, beside the checkpoints that it belongs to

IMAGE = "image"  # stands for the pixels among the layers
_PARAMS, _SCALES = "params", "scales"  # in that file
_WIDTH = 64
_FLOOR = 0.1  # of a channel's mean over all places, added to that of each

Inputs = Mapping[str, Float[Array | np.ndarray, "n _h _w _k"]]


class Network(nn.Module):
    """From inputs, by layer, to the logits of anomalous pixels at half the image's size."""

    @nn.compact
    def __call__(self, inputs: Inputs) -> Float[Array, "n half_height half_width"]:
        """The logits; see the module's docstring."""
        n, height, width, _ = inputs[IMAGE].shape
        size = (-(-height // 2), -(-width // 2))

        def resized(x: Array) -> Array:
            return jax.image.resize(x, (n, *size, x.shape[3]), "bilinear")

        total = self.param("bias", nn.initializers.zeros_init(), (_WIDTH,))
        for number, layer in enumerate(sorted(inputs)):
            x = jnp.asarray(inputs[layer])
            # Resizing and a 1 x 1 convolution commute; where pixels are fewer the latter is first.
            dense = nn.Dense(_WIDTH, use_bias=False, name=f"layer_{number}")
            larger = x.shape[1] > size[0]
            total = total + (dense(resized(x)) if larger else resized(dense(x)))
        x = nn.relu(nn.Conv(_WIDTH, (3, 3), name="hidden")(nn.relu(total)))
        return nn.Conv(1, (3, 3), name="last")(x)[..., 0]


@flax.struct.dataclass
class Head:
    """The network's weights, for one model. A pytree: it may be traced.

    Attributes:
      params: of `Network`.
      scales: by layer and `IMAGE`, what inputs of normal images are, with a floor.
    """

    params: PyTree
    scales: dict[str, Float[np.ndarray | Array, "_h _w _k"]]

    def save(self, path: pathlib.Path, origin: Mapping[str, object]) -> None:
        """Writes it, whole or not at all.

        Args:
          path: of the file.
          origin: what it was made from, for `load`; JSON's types alone.
        """
        arrays = _flat(self)
        about = {"origin": dict(origin), "checksum": digest(arrays)}
        with whole_files.writing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, about=np.array(json.dumps(about)), **arrays)

    @classmethod
    def load(cls, path: pathlib.Path) -> "tuple[Head, dict[str, object]] | None":
        """The head in a file and its origin; None where there is none that is whole."""
        try:
            arrays = whole_files.read_arrays(path)
            about = json.loads(str(arrays.pop("about")))
            if about["checksum"] != digest(arrays):
                return None
            kinds = {_PARAMS: {}, _SCALES: {}}
            for name, array in arrays.items():
                kind, _, rest = name.partition("/")
                kinds[kind][rest] = array
            params = flax.traverse_util.unflatten_dict(kinds[_PARAMS], sep="/")
            return cls(params, kinds[_SCALES]), dict(about["origin"])
        except Exception:  # zipfile and numpy raise nearly everything
            return None

    @property
    def digest(self) -> str:
        """What distinguishes it from other heads."""
        return digest(_flat(self))


def _flat(head: Head) -> dict[str, np.ndarray]:
    params = flax.traverse_util.flatten_dict(dict(head.params), sep="/")
    arrays = {f"{_PARAMS}/{name}": leaf for name, leaf in params.items()}
    arrays |= {f"{_SCALES}/{layer}": of for layer, of in head.scales.items()}
    return {name: np.asarray(leaf) for name, leaf in arrays.items()}


def raw_inputs(
    model: Model,
    variables: PyTree,
    x: Float[Array, "n height width channels"],
    counterparts: Float[Array, "n height width channels"],
    layers: tuple[str, ...],
) -> Inputs:
    """|A - B|, A+ and A- by layer; under `IMAGE` |x - x'|, x and 1 - x. None is negative.

    Args:
      model: the VAE.
      variables: its parameters and batch statistics.
      x: images in [0, 1].
      counterparts: of the images.
      layers: of the encoder.
    """
    found = {IMAGE: jnp.concatenate([jnp.abs(x - counterparts), x, 1 - x], axis=3)}
    for layer in layers:
        a, b = (model.apply(variables, of, layer, method="features") for of in (x, counterparts))
        found[layer] = jnp.concatenate([jnp.abs(a - b), nn.relu(a), nn.relu(-a)], axis=3)
    return found


def scale_of(mean: Float[np.ndarray, "_h _w _k"]) -> Float[np.ndarray, "_h _w _k"]:
    """What normal inputs are at each place, from their mean over images, with a floor."""
    typical = mean.mean(axis=(0, 1))
    return (mean + _FLOOR * np.where(typical > 0, typical, 1)).astype(np.float32)


def logits(
    params: PyTree, scales: Mapping[str, Array | np.ndarray], inputs: Inputs
) -> Float[Array, "n half_height half_width"]:
    """Of anomalous pixels, at half the image's size."""
    return Network().apply(
        {"params": params},
        {layer: jnp.log1p(inputs[layer] / scales[layer]) for layer in scales},
    )


def maps(
    model: Model,
    variables: PyTree,
    head: Head,
    x: Float[Array, "n height width channels"],
    counterparts: Float[Array, "n height width channels"],
) -> Float[Array, "n height width"]:
    """How likely each pixel is anomalous, from 0 to 1: a pure function.

    Args:
      model: the VAE that the head was made for.
      variables: its parameters and batch statistics.
      head: the trained one.
      x: images in [0, 1].
      counterparts: of the images.
    """
    layers = tuple(layer for layer in sorted(head.scales) if layer != IMAGE)
    inputs = raw_inputs(model, variables, x, counterparts, layers)
    found = jax.nn.sigmoid(logits(head.params, head.scales, inputs))
    return jax.image.resize(found, x.shape[:3], "bilinear")
