"""The variational autoencoder, its encoder split at any named layer into features and head."""

from collections.abc import Callable
from typing import Any as PyTree

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vae_attn import attention
from vae_attn.models import layers
from vae_attn.models.layers import Dense
from vae_attn.models.model import Sampling
from vae_attn.models.tables import Layers


class VAE(Sampling):
    """A variational autoencoder with Gaussian latents (Kingma & Welling 2014), a `model.Model`.

    For every layer name of the encoder's table, `encode` is `head` after `features`.

    Attributes:
      image_shape: height, width and channels of the images, which are in [0, 1].
      latents: dimension D of the latent space.
      encoder: rows up to, but not including, the two linear heads.
      decoder: rows from the latents to the logits of the image.
      initialization: of the heads: `torch`, `normal` or `glorot`, see `layers`.
      input_mean: per channel, subtracted from the images that enter the encoder; empty for none.
      input_std: per channel, by which they are then divided.
    """

    image_shape: tuple[int, int, int]
    latents: int
    encoder: Layers
    decoder: Layers
    initialization: str = "torch"
    input_mean: tuple[float, ...] = ()
    input_std: tuple[float, ...] = ()

    def setup(self) -> None:
        """Builds the heads; encoder and decoder are there."""
        self.mean: nn.Module = Dense(self.latents, self.initialization)
        self.logvar: nn.Module = Dense(self.latents, self.initialization)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the places whose features are spatial, in order: the rows before `flatten`."""
        names = self.encoder.table.names
        return names[: names.index("flatten")] if "flatten" in names else names

    def features(
        self,
        images: Float[Array, "batch height width channels"],
        layer: str,
        *,
        train: bool = False,
    ) -> Float[Array, "batch h w k"]:
        """Activations A at a named layer: the first half of the encoder.

        `conv2` is the convolution's output before its ReLU, `conv2_relu` after it.
        """
        return self.encoder(self._normalized(images), until=layer, train=train)

    def head(
        self, features: Float[Array, "batch h w k"], layer: str, *, train: bool = False
    ) -> tuple[Float[Array, "batch latents"], Float[Array, "batch latents"]]:
        """Mean and log variance from the activations at a named layer: the second half."""
        hidden = self.encoder(features, after=layer, train=train)
        return self.mean(hidden), self.logvar(hidden)

    def encode(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch latents"], Float[Array, "batch latents"]]:
        """Mean and log variance of q(z | x)."""
        hidden = self.encoder(self._normalized(images), train=train)
        return self.mean(hidden), self.logvar(hidden)

    def decode(
        self, z: Float[Array, "batch latents"], *, train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        """Logits of the image's pixels under p(x | z); `reconstruct` gives the pixels."""
        return self.decoder(z, train=train)

    @nn.nowrap
    def dense_mean(self, layer: str) -> Callable[[PyTree], attention.DenseMean] | None:
        """The mean of `head` in the form from which attention is cheap, where it has that form.

        Args:
          layer: see `features`.

        Returns:
          A function of the variables, for `attention.make_attention_fn`; None unless the rows after
          the layer are [ReLU,] flatten and a linear layer.
        """
        match self.encoder.table.between(layer, None):
            case ((_, nn.relu), (_, layers.flatten), (name, Dense()), *_):
                activation = jax.nn.relu
            case ((_, layers.flatten), (name, Dense()), *_):
                activation = jax.nn.identity
            case _:
                return None

        def split(variables: PyTree) -> attention.DenseMean:
            dense = variables["params"]["encoder"][name]

            def rest(hidden: Array) -> Array:
                return self.apply(
                    variables,
                    hidden + dense["bias"],
                    method=lambda vae, hidden: vae.mean(vae.encoder(hidden, after=name)),
                )

            return attention.DenseMean(activation, dense["kernel"], rest)

        return split

    def _normalized(self, images: Array) -> Array:
        """What the trunk's weights expect; the images outside the encoder stay in [0, 1]."""
        if not self.input_mean:
            return images
        mean, std = self.input_mean, self.input_std
        return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)
