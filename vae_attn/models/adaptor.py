"""Makes a `model.Model` of a Flax module that has `features`, `head` and `decode` alone."""

import flax.linen as nn
from jaxtyping import Array, Float

from vae_attn.models.model import Sampling


class Adaptor(Sampling):
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

    @nn.nowrap
    def dense_mean(self, layer: str) -> None:
        """None: nothing is known of the head's form."""
