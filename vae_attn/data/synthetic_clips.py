"""Draws the UCSD Ped1 twin: people on a walkway, and a cart or a cyclist among them."""

import dataclasses
import pathlib

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

_HEIGHT, _WIDTH = 158, 238
_DETAIL = 3  # drawn so many times larger, then averaged: thin legs and wheels stay visible
_HORIZON = 12

_KINDS = ("cart", "cyclist")


@dataclasses.dataclass(frozen=True)
class _Mover:
    """Somebody or something that moves up or down the walkway.

    Attributes:
      kind: "person", "cart" or "cyclist".
      lane: -1 (left edge of the walkway) to 1.
      start: the row of the feet at frame `first`; `speed` rows a frame, negative is away.
      shade: grey level of the clothes or the body.
      first, last: the frames (from 0) between which it is drawn.
      phase: of the gait.
    """

    kind: str
    lane: float
    start: float
    speed: float
    shade: int
    first: int
    last: int
    phase: float


def write(root: pathlib.Path, *, small: bool, seed: int) -> None:
    """Writes `Train/TrainNNN/NNN.tif`, `Test/TestNNN/NNN.tif`, masks of some, `UCSDped1.m`.

    Args:
      root: becomes the folder `UCSDped1`.
      small: 3 training and 6 test clips of 12 frames; else 12 and 12 of 100.
      seed: of everything drawn.
    """
    n_train, n_test, n_frames = (3, 6, 12) if small else (12, 12, 100)
    scene = _scene(np.random.default_rng([seed, 0]))
    for clip in range(1, n_train + 1):
        rng = np.random.default_rng([seed, 1, clip])
        frames, _ = _draw_clip(rng, scene, _crowd(rng, n_frames), n_frames)
        _save(root / "Train" / f"Train{clip:03d}", frames, "tif")
    statements = ["TestVideoFile = {};"]
    for clip in range(1, n_test + 1):
        rng = np.random.default_rng([seed, 2, clip])
        movers = _crowd(rng, n_frames) + _intruders(rng, n_frames, clip)
        frames, masks = _draw_clip(rng, scene, movers, n_frames)
        _save(root / "Test" / f"Test{clip:03d}", frames, "tif")
        if clip % 2 == 0:  # as in Ped1, pixel masks are there for some clips only
            _save(root / "Test" / f"Test{clip:03d}_gt", masks.astype(np.uint8) * 255, "bmp")
        ranges = ", ".join(f"{a}:{b}" for a, b in _runs(masks.any(axis=(1, 2))))
        statements.append(f"TestVideoFile{{end+1}}.gt_frame = [{ranges}];")
    (root / "Test" / "UCSDped1.m").write_text("\n".join(statements) + "\n", encoding="utf-8")


def _save(folder: pathlib.Path, frames: UInt8[np.ndarray, "n height width"], suffix: str) -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, start=1):
        Image.fromarray(frame).save(folder / f"{number:03d}.{suffix}")


def _runs(flags: Bool[np.ndarray, "n"]) -> list[tuple[int, int]]:
    """First and last index, from 1, of each run of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(int)))
    return [(int(a) + 1, int(b)) for a, b in edges.reshape(-1, 2)]


def _scene(rng: np.random.Generator) -> UInt8[np.ndarray, "158 238"]:
    """Grass left and right of a paved walkway that narrows towards the horizon."""
    grass = 92 + 9 * ndimage.gaussian_filter(rng.normal(size=(_HEIGHT, _WIDTH)), 1.0) / 0.28
    paving = 168 + 2 * rng.normal(size=(_HEIGHT, _WIDTH))
    rows, columns = np.mgrid[:_HEIGHT, :_WIDTH]
    centre, half = _walkway(rows)
    level = np.where(np.abs(columns - centre) < half, paving, grass)
    # Joints of the paving, closer to each other the farther away.
    joint = np.sin(2 * np.pi * 26 * np.log1p(rows / 30)) > 0.93
    level = np.where(joint & (np.abs(columns - centre) < half), level - 12, level)
    level = np.where(rows < _HORIZON, 60 + rows, level)
    return level.round().clip(0, 255).astype(np.uint8)


def _walkway(row):
    """The walkway's middle and half width at a row."""
    return 119 + 0.12 * (row - 80), 28 + 0.42 * (row - _HORIZON)


def _scale(row: float) -> float:
    """Size of things whose feet stand at a row; 1 at mid-height."""
    return 0.45 + 0.55 * (row - _HORIZON) / 67


def _crowd(rng: np.random.Generator, n_frames: int) -> list[_Mover]:
    """Four to nine people, each walking one way for the whole clip."""
    return [
        _Mover(
            kind="person",
            lane=float(rng.uniform(-0.9, 0.9)),
            start=float(rng.uniform(25, 165)),
            speed=float(rng.choice([-1, 1]) * rng.uniform(0.25, 0.5)),
            shade=int(rng.choice([25, 45, 70, 215])),
            first=0,
            last=n_frames,
            phase=float(rng.uniform(0, 6)),
        )
        for _ in range(rng.integers(4, 10))
    ]


def _intruders(rng: np.random.Generator, n_frames: int, clip: int) -> list[_Mover]:
    """One cart or cyclist crossing part of the clip; every third clip has two, one by one."""
    spans = [(0.15, 0.45), (0.6, 0.95)] if clip % 3 == 0 else [(0.25, 0.8)]
    movers = []
    for number, (begin, end) in enumerate(spans):
        first, last = round(begin * n_frames), round(end * n_frames)
        away = rng.random() < 0.5
        near, far = rng.uniform(135, 165), rng.uniform(35, 60)
        start, stop = (near, far) if away else (far, near)
        movers.append(
            _Mover(
                kind=_KINDS[(clip + number) % 2],
                lane=float(rng.uniform(-0.5, 0.5)),
                start=float(start),
                speed=float((stop - start) / (last - first)),
                shade=int(rng.integers(225, 250)),
                first=first,
                last=last,
                phase=0.0,
            )
        )
    return movers


def _draw_clip(
    rng: np.random.Generator,
    scene: UInt8[np.ndarray, "158 238"],
    movers: list[_Mover],
    n_frames: int,
) -> tuple[UInt8[np.ndarray, "n 158 238"], Bool[np.ndarray, "n 158 238"]]:
    """Frames, and where an intruder is in each (what people in front hide is left out)."""
    large = (_WIDTH * _DETAIL, _HEIGHT * _DETAIL)
    background = Image.fromarray(scene).resize(large, Image.Resampling.NEAREST)
    frames, masks = [], []
    for frame in range(n_frames):
        picture, truth = background.copy(), Image.new("L", large)
        present = [mover for mover in movers if mover.first <= frame < mover.last]
        # From the farthest to the nearest, so that the nearer hides the farther.
        for mover in sorted(present, key=lambda mover: _row(mover, frame)):
            _draw(ImageDraw.Draw(picture), mover, frame, fill=None)
            _draw(ImageDraw.Draw(truth), mover, frame, fill=0 if mover.kind == "person" else 255)
        small = np.asarray(picture.reduce(_DETAIL)) + rng.normal(0, 2, scene.shape)
        frames.append(small.round().clip(0, 255).astype(np.uint8))
        masks.append(np.asarray(truth.reduce(_DETAIL)) > 127)
    return np.stack(frames), np.stack(masks)


def _row(mover: _Mover, frame: int) -> float:
    """The row of the feet; people who leave the picture come in again at the other end."""
    row = mover.start + mover.speed * (frame - mover.first)
    return 20 + (row - 20) % 160 if mover.kind == "person" else row


def _draw(draw: ImageDraw.ImageDraw, mover: _Mover, frame: int, *, fill: int | None) -> None:
    """Draws a mover; with `fill`, only its outline filled by that value."""
    row = _row(mover, frame)
    centre, half = _walkway(row)
    scale = _scale(row) * _DETAIL
    x, y = (centre + mover.lane * half) * _DETAIL, row * _DETAIL

    def box(left, top, right, bottom, shade, round_=False):
        corners = (x + left * scale, y + top * scale, x + right * scale, y + bottom * scale)
        (draw.ellipse if round_ else draw.rectangle)(corners, fill=shade if fill is None else fill)

    if mover.kind == "cart":
        box(-9, -6, -5, 0, 20, round_=True)
        box(5, -6, 9, 0, 20, round_=True)
        box(-10, -13, 10, -3, mover.shade)
        box(-9, -24, -8, -13, 40)
        box(8, -24, 9, -13, 40)
        box(-2.5, -21, 2.5, -12, 60, round_=True)
        box(-11, -26, 11, -23, mover.shade)
        return
    if mover.kind == "cyclist":
        box(-9, -8, -1, 0, 15, round_=True)
        box(1, -8, 9, 0, 15, round_=True)
        box(-6, -9, 6, -7, mover.shade)
        box(-2.5, -19, 3, -7, mover.shade, round_=True)
        box(0, -23, 4, -18, 190, round_=True)
        return
    stride = 1.2 * np.sin(0.6 * frame + mover.phase)
    box(-2.2 + stride, -8, -0.4 + stride, 0, 40)
    box(0.4 - stride, -8, 2.2 - stride, 0, 40)
    box(-3, -16, 3, -6, mover.shade, round_=True)
    box(-1.7, -19.5, 1.7, -15.5, 150, round_=True)
