"""Makes a `model.Model` of a Flax module that has `features`, `head` and `decode` alone."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


class Adaptor(nn.Module):
    """A module of one's own, with all else that the package needs of a model.

    Attributes:
      module: has `features(images, layer, *, train)`, `head(features, layer, *, train)` and
        `decode(z, *, train)`; see `vae_attn.models.build`.
      image_shape: height, width and channels of the images, which are in [0, 1].
      latents: dimension D of the latent space.
      layer: the one at which `encode` cuts the encoder; whichever it is, the result is the same.
    """

    module: nn.Module
    image_shape: tuple[int, int, int]
    latents: int
    layer: str

    @property
    def layers(self) -> tuple[str, ...]:
        """The names in the module's `layers`, or none."""
        names = getattr(self.module, "layers", ())
        listed = isinstance(names, (tuple, list)) and all(isinstance(one, str) for one in names)
        return tuple(names) if listed else ()

    def features(
        self,
        images: Float[Array, "batch height width channels"],
        layer: str,
        *,
        train: bool = False,
    ) -> Float[Array, "batch h w k"]:
        """The module's own."""
        return self.module.features(images, layer, train=train)

    def head(
        self, features: Float[Array, "batch h w k"], layer: str, *, train: bool = False
    ) -> tuple[Float[Array, "batch latents"], Float[Array, "batch latents"]]:
        """The module's own."""
        return self.module.head(features, layer, train=train)

    def encode(
        self, images: Float[Array, "batch height width channels"], *, train: bool = False
    ) -> tuple[Float[Array, "batch latents"], Float[Array, "batch latents"]]:
        """Mean and log variance of q(z | x): `head` after `features`."""
        return self.head(self.features(images, self.layer, train=train), self.layer, train=train)

    def decode(
        self, z: Float[Array, "batch latents"], *, train: bool = False
    ) -> Float[Array, "batch height width channels"]:
        """The module's own: logits."""
        return self.module.decode(z, train=train)

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
        """Logits of the image decoded from z = mean + exp(logvar / 2) noise, mean, log variance."""
        mean, logvar = self.encode(images, train=train)
        z = mean + jnp.exp(logvar / 2) * noise
        return self.decode(z, train=train), mean, logvar

    @nn.nowrap
    def dense_mean(self, layer: str) -> None:
        """None: nothing is known of the head's form."""
