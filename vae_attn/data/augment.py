"""Random rotations, mirrors and shifts, one image at a time, inside the training step."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What may be done to a training image.

    Attributes:
      rotation: largest rotation, degrees both ways.
      shift: largest shift, pixels each way.
      mirror_horizontal: whether left and right may be swapped.
      mirror_vertical: whether top and bottom may be swapped.
    """

    rotation: float = 0.0
    shift: float = 0.0
    mirror_horizontal: bool = False
    mirror_vertical: bool = False

    def __call__(
        self, key: Key[Array, ""], image: Float[Array, "height width channels"]
    ) -> Float[Array, "height width channels"]:
        """The image under a transformation drawn uniformly; its edge is continued outwards."""
        if self == Augmentation():
            return image
        angle_key, shift_key, mirror_key = jax.random.split(key, 3)
        angle = jnp.deg2rad(
            jax.random.uniform(angle_key, (), jnp.float32, minval=-1.0) * self.rotation
        )
        shift = jax.random.uniform(shift_key, (2,), jnp.float32, minval=-1.0) * self.shift
        flips = jax.random.bernoulli(mirror_key, shape=(2,))
        sign_x = jnp.where(flips[0] & self.mirror_horizontal, -1.0, 1.0)
        sign_y = jnp.where(flips[1] & self.mirror_vertical, -1.0, 1.0)

        height, width, _ = image.shape
        y = jnp.arange(height, dtype=jnp.float32)[:, None] - (height - 1) / 2
        x = jnp.arange(width, dtype=jnp.float32)[None, :] - (width - 1) / 2
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        source_y = sign_y * (cos * y - sin * x) + (height - 1) / 2 + shift[0]
        source_x = sign_x * (sin * y + cos * x) + (width - 1) / 2 + shift[1]

        def sample(channel: Float[Array, "height width"]) -> Float[Array, "height width"]:
            return jax.scipy.ndimage.map_coordinates(
                channel, [source_y, source_x], order=1, mode="nearest"
            )

        return jax.vmap(sample, in_axes=2, out_axes=2)(image)
