"""Draws the MVTec-AD twin: a carpet, a hazelnut and a grid, with holes, scratches and stains."""

import pathlib
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image
from scipy import ndimage

# Pixels of an image are floats from 0 to 1 while it is drawn.
_Rng = np.random.Generator


def write(root: pathlib.Path, *, seed: int) -> None:
    """Writes `<category>/{train/good, test/<good|defect>, ground_truth/<defect>}/NNN.png`.

    Args:
      root: the folder of the categories.
      seed: of everything drawn.
    """
    size, n_train, n_good, n_defect = 64, 12, 4, 3
    for number, (category, draw) in enumerate(_CATEGORIES.items()):
        folder = root / category
        for split, count in (("train", n_train), ("test", n_good)):
            (folder / split / "good").mkdir(parents=True)
            for i in range(count):
                rng = np.random.default_rng([seed, number, split == "test", i])
                _save(folder / split / "good" / f"{i:03d}.png", draw(rng, size)[0])
        for kind, (defect, spoil) in enumerate(_DEFECTS.items()):
            (folder / "test" / defect).mkdir(parents=True)
            (folder / "ground_truth" / defect).mkdir(parents=True)
            for i in range(n_defect):
                rng = np.random.default_rng([seed, number, 2 + kind, i])
                image, body = draw(rng, size)
                mask = _defect_shape(rng, body, thin=defect == "scratch")
                spoiled = spoil(rng, image, mask)
                _save(folder / "test" / defect / f"{i:03d}.png", spoiled)
                Image.fromarray(mask).convert("L").save(
                    folder / "ground_truth" / defect / f"{i:03d}_mask.png"
                )


def _save(path: pathlib.Path, image: Float[np.ndarray, "size size channels"]) -> None:
    levels = (image.clip(0, 1) * 255).round().astype(np.uint8)
    Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels).save(path)


def _smooth_noise(rng: _Rng, size: int, scale: float) -> Float[np.ndarray, "{size} {size}"]:
    """Noise of unit deviation, smooth over `scale` of the side."""
    noise = ndimage.gaussian_filter(rng.normal(size=(size, size)), scale * size, mode="wrap")
    return (noise - noise.mean()) / noise.std()


def _grid_of(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates down and across, from -1 to 1, whatever the size."""
    axis = (np.arange(size) + 0.5) / size * 2 - 1
    return np.meshgrid(axis, axis, indexing="ij")


def _carpet(rng: _Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A woven texture over the whole picture."""
    down, across = _grid_of(size)
    phase = rng.uniform(0, 2 * np.pi, 2)
    wobble = 0.01 * _smooth_noise(rng, size, 0.08)
    warp = np.sin(2 * np.pi * 7 * (down + wobble) + phase[0])
    weft = np.sin(2 * np.pi * 7 * (across + wobble) + phase[1])
    level = 0.5 + 0.10 * warp * weft + 0.05 * (warp - weft)
    level += 0.02 * rng.normal(size=(size, size)) + 0.01 * _smooth_noise(rng, size, 0.1)
    tint = np.array([0.86, 0.88, 0.95])
    return level[..., None] * tint, np.ones((size, size), bool)


def _hazelnut(rng: _Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A brown nut on black, turned any way, with stripes and a pale cap."""
    down, across = _grid_of(size)
    angle = rng.uniform(0, 2 * np.pi)
    down, across = down - rng.normal(0, 0.03), across - rng.normal(0, 0.03)
    u = (np.cos(angle) * across + np.sin(angle) * down) / rng.uniform(0.60, 0.66)
    v = (np.cos(angle) * down - np.sin(angle) * across) / rng.uniform(0.70, 0.76)
    radius = np.hypot(u, v)
    body = radius < 1
    shade = np.sqrt((1 - radius**2).clip(0))
    stripes = 0.06 * np.sin(14 * u + 0.5 * _smooth_noise(rng, size, 0.06))
    texture = 1 + stripes + 0.05 * _smooth_noise(rng, size, 0.015)
    nut = (0.35 + 0.65 * shade * texture)[..., None] * np.array([0.62, 0.40, 0.24])
    cap = ndimage.gaussian_filter((body & (v > 0.55)).astype(float), 0.01 * size)[..., None]
    nut = nut * (1 - 0.6 * cap) + 0.6 * cap * shade[..., None] * np.array([0.75, 0.66, 0.52])
    background = 0.05 + 0.008 * rng.normal(size=(size, size, 1))
    edge = ndimage.gaussian_filter(body.astype(float), 0.005 * size)[..., None]
    return nut * edge + background * (1 - edge), radius < 0.85


def _grid(rng: _Rng, size: int) -> tuple[np.ndarray, np.ndarray]:
    """A mesh of bright wires on grey, a single channel as MVTec's."""
    down, across = _grid_of(size)
    phase = rng.uniform(0, 1, 2)
    wires = np.zeros((size, size))
    for direction, shift in zip((down + across, down - across), phase, strict=True):
        distance = np.abs((direction * 2.2 + shift) % 1 - 0.5)
        wires = np.maximum(wires, 1 / (1 + np.exp((distance - 0.12) / 0.025)))
    level = 0.30 + 0.45 * wires + 0.02 * _smooth_noise(rng, size, 0.1)
    level += 0.015 * rng.normal(size=(size, size))
    return level[..., None], np.ones((size, size), bool)


def _defect_shape(
    rng: _Rng, body: Bool[np.ndarray, "size size"], *, thin: bool
) -> Bool[np.ndarray, "size size"]:
    """A thin stroke or a ragged blob, inside the object and away from the border."""
    size = len(body)
    down, across = _grid_of(size)
    inside = body & (np.abs(down) < 0.75) & (np.abs(across) < 0.75)
    row, column = rng.choice(np.argwhere(inside))
    down, across = down - down[row, column], across - across[row, column]
    if thin:
        angle, length = rng.uniform(0, np.pi), rng.uniform(0.25, 0.45)
        along = np.cos(angle) * across + np.sin(angle) * down
        beside = np.cos(angle) * down - np.sin(angle) * across
        bend = beside - 0.05 * np.sin(6 * along + rng.uniform(0, 6))
        shape = (np.abs(bend) < max(0.02, 1.5 / size)) & (np.abs(along) < length)
    else:
        ragged = 1 + 0.25 * _smooth_noise(rng, size, 0.05)
        shape = np.hypot(down, across) < rng.uniform(0.12, 0.22) * ragged
    shape &= body
    shape[row, column] = True  # so that no mask is ever empty
    return shape


def _soft(mask: Bool[np.ndarray, "size size"]) -> Float[np.ndarray, "size size 1"]:
    """The mask with edges blurred inwards only, so that nothing outside it changes."""
    blurred = ndimage.gaussian_filter(mask.astype(float), 0.7)
    return np.where(mask, blurred.clip(0.5), 0.0)[..., None]


def _hole(rng: _Rng, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    depth = 0.03 + 0.01 * rng.normal(size=image.shape)
    return image * (1 - _soft(mask)) + depth * _soft(mask)


def _scratch(rng: _Rng, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    glint = 0.92 + 0.03 * rng.normal(size=image.shape)
    return image * (1 - _soft(mask)) + glint * _soft(mask)


def _stain(rng: _Rng, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colours what shines through; a single channel is only darkened."""
    colours = np.array([[0.95, 0.30, 0.25], [0.30, 0.55, 0.95], [0.40, 0.85, 0.35]])
    colour = rng.choice(colours) if image.shape[-1] == 3 else np.array([0.45])
    opacity = 0.75 * _soft(mask)
    return image * (1 - opacity) + (0.15 + 0.7 * image.mean(-1, keepdims=True)) * colour * opacity


_CATEGORIES: dict[str, Callable] = {"carpet": _carpet, "hazelnut": _hazelnut, "grid": _grid}
_DEFECTS: dict[str, Callable] = {"hole": _hole, "scratch": _scratch, "stain": _stain}
