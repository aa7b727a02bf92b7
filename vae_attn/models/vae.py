"""The variational autoencoder, its encoder split at any named layer into features and head."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vae_attn import attention
from vae_attn.models import layers, tables


@dataclasses.dataclass(frozen=True)
class Architecture:
    """A VAE as data: its tables and what they expect.

    Attributes:
      name: the one that configs use.
      image_shape: height, width and channels of the images, which are in [0, 1].
      encoder: rows up to, without, the two linear heads.
      decoder: rows from the latents to the logits of the image.
      initialization: of the weights: `torch` (PyTorch's default) or `normal` (N(0, 0.02)).
      input_mean: a channel, subtracted from the images at the encoder's entrance; empty for none.
      input_std: a channel, by which they are then divided.
    """

    name: str
    image_shape: tuple[int, int, int]
    encoder: tuple[tables.Row, ...]
    decoder: tuple[tables.Row, ...]
    initialization: str
    input_mean: tuple[float, ...] = ()
    input_std: tuple[float, ...] = ()

    def attention_layers(self) -> tuple[str, ...]:
        """Names of the places whose features are spatial, in order: the rows of the trunk."""
        names = [row.name for row in self.encoder]
        return tuple(names[: names.index("flatten")])


class VAE(nn.Module):
    """A variational autoencoder with Gaussian latents (Kingma & Welling 2014).

    For every layer name of the encoder's table, `encode` is `head` after `features`.

    Attributes:
      architecture: the tables.
      latents: dimension D of the latent space.
      axis_name: device axis over which batch statistics are averaged in training.
      freeze_trunk: whether the trunk's batch normalisation keeps its running statistics in
        training too. What keeps its parameters is `training.trunk.freeze`.
    """

    architecture: Architecture
    latents: int = 32
    axis_name: str | None = None
    freeze_trunk: bool = False

    def setup(self) -> None:
        """Builds encoder, heads and decoder."""
        scheme = self.architecture.initialization
        frozen = self.architecture.attention_layers() if self.freeze_trunk else ()
        self.encoder = tables.Layers(self.architecture.encoder, scheme, self.axis_name, frozen)
        self.mean = layers.Dense(self.latents, scheme)
        self.logvar = layers.Dense(self.latents, scheme)
        self.decoder = tables.Layers(self.architecture.decoder, scheme, self.axis_name)

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

    @nn.nowrap
    def dense_mean(self, layer: str) -> Callable[[PyTree], attention.DenseMean] | None:
        """The mean of `head` in the form from which attention is cheap, where it has that form.

        Args:
          layer: see `features`.

        Returns:
          A function of the variables, for `attention.make_attention_fn`; None unless [ReLU,]
          Flatten and Linear follow the layer.
        """
        names = [row.name for row in self.architecture.encoder]
        match self.architecture.encoder[names.index(layer) + 1 :]:
            case (tables.ReLU(), tables.Flatten(), tables.Linear(name), *_):
                activation = jax.nn.relu
            case (tables.Flatten(), tables.Linear(name), *_):
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

    def encode(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch latents"], Float[Array, "batch latents"]]:
        """Mean and log variance of q(z | x)."""
        hidden = self.encoder(self._normalized(images), train=train)
        return self.mean(hidden), self.logvar(hidden)

    def _normalized(self, images: Array) -> Array:
        """What the trunk's weights expect; the images outside the encoder stay in [0, 1]."""
        if not self.architecture.input_mean:
            return images
        mean, std = self.architecture.input_mean, self.architecture.input_std
        return (images - jnp.asarray(mean, images.dtype)) / jnp.asarray(std, images.dtype)

    def decode(
        self, z: Float[Array, "batch latents"], *, train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        """Logits of the image's pixels under p(x | z); `reconstruct` gives the pixels."""
        return self.decoder(z, train=train)

    def reconstruct(
        self, z: Float[Array, "batch latents"]
    ) -> Float[Array, "batch height width channels"]:
        """The image's expectation under p(x | z), in [0, 1]."""
        return jax.nn.sigmoid(self.decode(z))

    def __call__(
        self,
        images: Float[Array, "batch height width channels"],
        noise: Float[Array, "batch latents"],
        *,
        train: bool = False,
    ) -> tuple[
        Float[Array, "batch height width channels"],
        Float[Array, "batch latents"],
        Float[Array, "batch latents"],
    ]:
        """Encodes, samples z = mean + exp(logvar / 2) noise, decodes.

        Returns:
          Logits of the reconstruction, mean and log variance.
        """
        mean, logvar = self.encode(images, train=train)
        z = mean + jnp.exp(logvar / 2) * noise
        return self.decode(z, train=train), mean, logvar
