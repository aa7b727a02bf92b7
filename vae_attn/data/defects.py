"""Defects with known truth: strokes added to digits that are normal, and parts erased."""

import dataclasses
import hashlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vae_attn.data.dataset import LabelledImages
from vae_attn.errors import UserError

# A pixel is anomalous where it changed by more than a tenth of the range; what changed less is
# put back, so that mask and change are the same thing.
THRESHOLD = 25
_ATTEMPTS = 500
_MIN_VISIBLE = 0.6  # of a stroke's pixels; the rest may cross the digit


@dataclasses.dataclass(frozen=True)
class DefectSize:
    """One size of defect; lengths are pixels of a frame of 28x28 and scale with larger ones.

    Attributes:
      stroke_length: from end to end along the curve.
      erased_diameter: of the disc whose ink is removed.
      min_pixels: mask pixels that a defect has at least.
    """

    stroke_length: float
    erased_diameter: float
    min_pixels: int


SIZES = {
    "small": DefectSize(stroke_length=4.0, erased_diameter=5.0, min_pixels=6),
    "medium": DefectSize(stroke_length=8.0, erased_diameter=7.5, min_pixels=12),
    "large": DefectSize(stroke_length=14.0, erased_diameter=11.0, min_pixels=20),
}

SCORES_NOTE = (
    "The intervals of the pixel scores take the six defects drawn on one digit for independent."
)


def draw_defects(
    images: UInt8[np.ndarray, "n height width 1"],
    *,
    kinds: tuple[str, ...] = ("stroke", "erase"),
    sizes: tuple[str, ...] = ("small", "medium", "large"),
    seed: int = 0,
    names: tuple[str, ...] | None = None,
) -> LabelledImages:
    """Draws one defect of every kind and size on a copy of every image.

    Strokes are anti-aliased quadratic curves as wide as a pen's in MNIST; erasing takes the ink
    out of a disc around a pixel that has some. Where and how is a function of the image's own
    pixels, kind, size and `seed`: the same in any batch and any order.

    Args:
      images: normal digits, bright ink on black. Held-out ones, if a model is to be judged.
      kinds: of "stroke" and "erase".
      sizes: keys of `SIZES`.
      seed: changes every defect.
      names: of the images; their positions by default.

    Returns:
      `n * len(kinds) * len(sizes)` images, those of the first image first, each with the mask of
      the pixels that differ from the original (by more than `THRESHOLD` of 255, never empty).
      The class names are "normal", "stroke small", ...; no image is of class 0.

    Raises:
      UserError: an unknown kind or size, `names` of another length, or an image in which no such
        defect fits (a blank one has no ink to erase).
    """
    _check_known("kind", kinds, _DRAW)
    _check_known("size", sizes, SIZES)
    if names is None:
        names = tuple(f"{index:05d}" for index in range(len(images)))
    if len(names) != len(images):
        raise UserError(f"{len(names)} names for {len(images)} images; give one name per image")
    variants = [(kind, size) for kind in kinds for size in sizes]
    drawn = np.empty((len(images), len(variants), *images.shape[1:]), np.uint8)
    for index, image in enumerate(images):
        for number, (kind, size) in enumerate(variants):
            drawn[index, number, ..., 0] = _draw_one(image[..., 0], kind, size, seed, names[index])
    masks = (drawn != images[:, None])[..., 0]
    count = len(images) * len(variants)
    return LabelledImages(
        images=drawn.reshape(count, *images.shape[1:]),
        labels=np.tile(np.arange(1, len(variants) + 1), len(images)),
        class_names=("normal", *(f"{kind} {size}" for kind, size in variants)),
        names=tuple(f"{name}/{kind}_{size}" for name in names for kind, size in variants),
        masks=masks.reshape(count, *images.shape[1:3]),
        has_mask=np.ones(count, bool),
    )


def _check_known(what: str, chosen: tuple[str, ...], known: dict) -> None:
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise UserError(f"defect {what}s {chosen!r} must be one or more of {', '.join(known)}")


def _draw_one(
    image: UInt8[np.ndarray, "height width"], kind: str, size: str, seed: int, name: str
) -> UInt8[np.ndarray, "height width"]:
    """Draws until a defect changes enough pixels."""
    digest = hashlib.sha256(f"{seed} {kind} {size}".encode() + image.tobytes()).digest()
    rng = np.random.default_rng(int.from_bytes(digest[:16], "little"))
    scale = min(image.shape) / 28
    for _ in range(_ATTEMPTS):
        new = np.rint(_DRAW[kind](image, SIZES[size], scale, rng)).astype(np.int64)
        changed: Bool[np.ndarray, "height width"] = np.abs(new - image) > THRESHOLD
        if changed.sum() >= SIZES[size].min_pixels * scale**2:
            return np.where(changed, new, image).astype(np.uint8)
    raise UserError(
        f"image {name} has no room for the defect '{kind} {size}' after {_ATTEMPTS} attempts; "
        "leave out the image, which may be blank, or this kind and size"
    )


def _stroke(
    image: UInt8[np.ndarray, "height width"],
    size: DefectSize,
    scale: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "height width"]:
    """Adds a curved stroke whose middle lies where digits do, the frame's inner 20/28."""
    extent = np.array(image.shape)
    middle = extent * rng.uniform(4 / 28, 24 / 28, size=2)
    angle = rng.uniform(0, 2 * np.pi)
    along = np.array([np.sin(angle), np.cos(angle)])
    across = np.array([along[1], -along[0]])
    length = size.stroke_length * scale
    bow = rng.uniform(-0.5, 0.5) * length
    t = np.linspace(0, 1, 33)[:, None]
    # A quadratic Bezier curve: ends at -1/2 and 1/2 along, its control point `bow` across.
    points = middle + (t - 0.5) * length * along + 2 * t * (1 - t) * bow * across
    margin = 2.0 * scale
    if (points < margin).any() or (points > extent - 1 - margin).any():
        return image.astype(float)  # out of the frame: changes nothing, so it is drawn again
    radius = rng.uniform(1.1, 1.5) * scale
    distance = _distance_to(points, image.shape)
    ink = rng.uniform(0.85, 1.0) * 255 * np.clip((radius - distance) / scale + 0.5, 0, 1)
    visible = ink > image.astype(float) + THRESHOLD
    if visible.sum() < _MIN_VISIBLE * (ink > THRESHOLD).sum():
        return image.astype(float)  # hidden behind the digit's own ink: drawn again
    return np.maximum(image, ink)


def _erase(
    image: UInt8[np.ndarray, "height width"],
    size: DefectSize,
    scale: float,
    rng: np.random.Generator,
) -> Float[np.ndarray, "height width"]:
    """Removes the ink in a disc around an inked pixel, fading over two pixels at its rim."""
    inked = np.argwhere(image > 127)
    if not len(inked):
        return image.astype(float)
    centre = inked[rng.integers(len(inked))] + rng.uniform(-0.5, 0.5, size=2)
    radius = size.erased_diameter * scale / 2
    distance = _distance_to(centre[None], image.shape)
    return image * np.clip((distance - radius) / (2 * scale) + 0.5, 0, 1)


def _distance_to(
    points: Float[np.ndarray, "points 2"], shape: tuple[int, int]
) -> Float[np.ndarray, "height width"]:
    """Each pixel's distance to the nearest of the points."""
    rows, columns = (
        (np.arange(length) - along[:, None]) ** 2
        for length, along in zip(shape, points.T, strict=True)
    )
    return np.sqrt((rows[:, :, None] + columns[:, None]).min(axis=0))


_DRAW: dict[str, Callable[..., Float[np.ndarray, "height width"]]] = {
    "stroke": _stroke,
    "erase": _erase,
}
