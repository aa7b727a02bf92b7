"""Anomalies of known shape drawn on normal images, inside a compiled step.

A place of an image is filled with something else: with another normal image's texture or the
image's own, moved, mirrored and toned, or with one colour; with a hard or a soft edge, opaque or
not (as in CutPaste, Li et al. 2021; DRAEM, Zavrtanik et al. 2021; NSA, Schlueter et al. 2022).

There are two families of shapes, so that what was learned from one can be judged by the other:

    blobs      one to three blobs of any size and stretch, with ragged edges
    patches    a turned rectangle, from a thin scar to a square; or a cloud of smooth noise
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Key

SHAPES = BLOBS, PATCHES = ("blobs", "patches")

# A pixel is anomalous where a channel changed by more levels; what changed less is put back.
THRESHOLD = 6

_MOST_BLOBS = 3
_RADII = (0.02, 0.2)  # of a blob, in image sides
_HALF_SIDES = (0.01, 0.2)  # of a rectangle
_STRETCH = 4.0  # at most, one radius of a blob against the other
_WAVES = np.arange(2, 8, dtype=np.int32)  # around a blob's edge
_OPACITY = (0.35, 1.0)
_GRID = 8  # of the smooth noise, in cells a side
_CLOUD = (0.02, 0.1)  # of the image that a cloud covers

Image = Float[Array, "height width channels"]
Cover = Float[Array, "height width"]


def draw(
    key: Key[Array, ""], image: Image, other: Image, *, shapes: str = BLOBS
) -> tuple[Image, Bool[Array, "height width"]]:
    """An image with an anomaly drawn on it.

    Args:
      key: of all that is drawn at random.
      image: normal, in [0, 1].
      other: another normal image, whose texture may fill the place.
      shapes: of `SHAPES`.

    Returns:
      The image, at the levels of uint8, and which of its pixels are anomalous; none where the
      filling happens to be what was there.
    """
    cover_key, opacity_key, fill_key = jax.random.split(key, 3)
    cover = _COVERS[shapes](cover_key, image.shape[:2])
    opacity = jax.random.uniform(opacity_key, (), jnp.float32, *_OPACITY)
    alpha = (opacity * cover)[:, :, None]
    filled = (1 - alpha) * image + alpha * _filling(fill_key, image, other)
    before, after = jnp.round(255 * image), jnp.round(255 * filled)
    mask = (jnp.abs(after - before) > THRESHOLD).any(axis=2)
    return jnp.where(mask[:, :, None], after / 255, image), mask


def _filling(key: Key[Array, ""], image: Image, other: Image) -> Image:
    """The other image's texture, the image's own, or a colour, with the same chance."""
    kind_key, move_key, mirror_key, tone_key, colour_key = jax.random.split(key, 5)
    kind = jax.random.randint(kind_key, (), 0, 3)
    texture = jnp.where(kind == 0, other, image)
    height, width, channels = image.shape
    moved = jax.random.randint(move_key, (2,), 0, jnp.array([height, width]))
    texture = jnp.roll(texture, moved, axis=(0, 1))
    mirrored = jax.random.bernoulli(mirror_key, shape=(2,))
    texture = jnp.where(mirrored[0], texture[::-1], texture)
    texture = jnp.where(mirrored[1], texture[:, ::-1], texture)
    gain, level = jax.random.uniform(tone_key, (2,), jnp.float32)
    texture = jnp.clip((0.6 + 0.8 * gain) * texture + 0.4 * level - 0.2, 0, 1)
    return jnp.where(kind == 2, jax.random.uniform(colour_key, (channels,), jnp.float32), texture)


def _blobs(key: Key[Array, ""], size: tuple[int, int]) -> Cover:
    """One to three blobs, where they overlap the stronger one."""
    count_key, key = jax.random.split(key)
    count = jax.random.randint(count_key, (), 1, _MOST_BLOBS + 1)
    covers = jax.vmap(lambda key: _blob(key, size))(jax.random.split(key, _MOST_BLOBS))
    return jnp.where((jnp.arange(_MOST_BLOBS) < count)[:, None, None], covers, 0.0).max(axis=0)


def _blob(key: Key[Array, ""], size: tuple[int, int]) -> Cover:
    place_key, radius_key, stretch_key, wave_key, phase_key, soft_key = jax.random.split(key, 6)
    radius = _log_uniform(radius_key, *_RADII)
    stretch = jnp.sqrt(_log_uniform(stretch_key, 1.0, _STRETCH))
    y, x = _turned(place_key, size, jnp.stack([radius * stretch, radius / stretch]))
    distance, angle = jnp.hypot(y, x), jnp.arctan2(y, x)
    heights = 0.3 * jax.random.normal(wave_key, _WAVES.shape, jnp.float32) / _WAVES
    phases = jax.random.uniform(phase_key, _WAVES.shape, jnp.float32, maxval=2 * jnp.pi)
    waves = heights[:, None, None] * jnp.cos(_WAVES[:, None, None] * angle + phases[:, None, None])
    hard, share = jax.random.uniform(soft_key, (2,), jnp.float32)
    pixel = 1 / (radius * min(size))  # in radii: an edge at least as soft as that is antialiased
    softness = jnp.maximum(pixel, jnp.where(hard < 0.5, 0.0, 0.8 * share))
    return jnp.clip((1 + waves.sum(axis=0) - distance) / softness + 0.5, 0, 1)


def _patch(key: Key[Array, ""], size: tuple[int, int]) -> Cover:
    kind_key, rectangle_key, cloud_key = jax.random.split(key, 3)
    covers = _rectangle(rectangle_key, size), _cloud(cloud_key, size)
    return jnp.where(jax.random.bernoulli(kind_key), *covers)


def _rectangle(key: Key[Array, ""], size: tuple[int, int]) -> Cover:
    place_key, side_key = jax.random.split(key)
    y, x = _turned(place_key, size, _log_uniform(side_key, *_HALF_SIDES, shape=(2,)))
    return (jnp.maximum(jnp.abs(y), jnp.abs(x)) < 1).astype(jnp.float32)


def _cloud(key: Key[Array, ""], size: tuple[int, int]) -> Cover:
    """Where smooth noise is highest."""
    noise_key, share_key = jax.random.split(key)
    noise = jax.random.normal(noise_key, (_GRID, _GRID), jnp.float32)
    noise = jax.image.resize(noise, size, "cubic")
    share = jax.random.uniform(share_key, (), jnp.float32, *_CLOUD)
    return (noise > jnp.quantile(noise, 1 - share)).astype(jnp.float32)


_COVERS: Mapping[str, Callable[..., Cover]] = {BLOBS: _blobs, PATCHES: _patch}


def _turned(
    key: Key[Array, ""], size: tuple[int, int], radii: Float[Array, "2"]
) -> tuple[Float[Array, "height width"], Float[Array, "height width"]]:
    """Each pixel's place in a turned frame around a random centre, in radii."""
    centre_key, angle_key = jax.random.split(key)
    centre = jax.random.uniform(centre_key, (2,), jnp.float32) * jnp.array(size, jnp.float32)
    angle = jax.random.uniform(angle_key, (), jnp.float32, maxval=2 * jnp.pi)
    y = jnp.arange(size[0], dtype=jnp.float32)[:, None] - centre[0]
    x = jnp.arange(size[1], dtype=jnp.float32)[None, :] - centre[1]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    scaled = radii * min(size)
    return (cos * y - sin * x) / scaled[0], (sin * y + cos * x) / scaled[1]


def _log_uniform(
    key: Key[Array, ""], low: float, high: float, shape: tuple[int, ...] = ()
) -> Float[Array, "*shape"]:
    return low * (high / low) ** jax.random.uniform(key, shape, jnp.float32)
