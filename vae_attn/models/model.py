"""What the package asks of a model: the one interface of our VAEs and of everyone else's."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable
from typing import Any as PyTree

import flax.linen as nn
import jax
from jaxtyping import Array, Float

from vae_attn import attention, losses

Images = Float[Array, "batch height width channels"]
Features = Float[Array, "batch h w k"]
Codes = Float[Array, "batch latents"]


@runtime_checkable
class Model(Protocol):
    """A variational autoencoder with Gaussian latents, cut at named layers; a Flax module.

    Images are in [0, 1]. Parameters and batch statistics are outside: the methods below are run by
    `model.apply(variables, ..., method="encode")`, except for `dense_mean`.

    `vae_attn.models.vae.VAE` is one. A module with `features`, `head` and `decode` alone becomes
    one by `vae_attn.models.adaptor.Adaptor`.

    Attributes:
      image_shape: height, width and channels of the images.
      latents: dimension D of the latent space.
      layers: names of the layers whose features are spatial, in order; empty where the module does
        not list them.
    """

    image_shape: tuple[int, int, int]
    latents: int

    @property
    def layers(self) -> tuple[str, ...]:
        """See the class."""

    def init(self, rngs: Any, *args: Any, **kwargs: Any) -> PyTree:
        """Variables, as of every Flax module: `params`, and `batch_stats` where there are some."""

    def apply(self, variables: PyTree, *args: Any, **kwargs: Any) -> Any:
        """Runs a method with variables, as of every Flax module."""

    def features(self, images: Images, layer: str, *, train: bool = False) -> Features:
        """Activations A at a named layer: the first half of the encoder."""

    def head(self, features: Features, layer: str, *, train: bool = False) -> tuple[Codes, Codes]:
        """Mean and log variance from the activations at a named layer: the second half."""

    def decode(self, z: Codes, *, train: bool = False) -> Images:
        """Logits of the pixels under p(x | z)."""

    def encode(self, images: Images, *, train: bool = False) -> tuple[Codes, Codes]:
        """Mean and log variance of q(z | x): `head` after `features`, of whichever layer."""

    def reconstruct(self, z: Codes) -> Images:
        """The image's expectation under p(x | z), in [0, 1]: the sigmoid of `decode`."""

    def __call__(
        self, images: Images, noise: Codes, *, train: bool = False
    ) -> tuple[Images, Codes, Codes]:
        """Logits of the image decoded from z = mean + exp(logvar / 2) noise, mean, log variance."""

    def dense_mean(self, layer: str) -> Callable[[PyTree], attention.DenseMean] | None:
        """The mean of `head` in the form from which attention is cheap, or None.

        A function of the variables, for `attention.make_attention_fn`.
        """


class Sampling(nn.Module):
    """What follows for a `Model` from its `encode` and `decode`."""

    def reconstruct(self, z: Codes) -> Images:
        """The image's expectation under p(x | z), in [0, 1]."""
        return jax.nn.sigmoid(self.decode(z))

    def __call__(
        self, images: Images, noise: Codes, *, train: bool = False
    ) -> tuple[Images, Codes, Codes]:
        """Logits of the image decoded from z = mean + exp(logvar / 2) noise, mean, log variance."""
        mean, logvar = self.encode(images, train=train)
        z = losses.reparameterize(mean=mean, logvar=logvar, noise=noise)
        return self.decode(z, train=train), mean, logvar
