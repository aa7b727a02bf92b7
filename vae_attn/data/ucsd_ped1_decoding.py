"""Decodes the frames and masks of UCSD Ped1, and finds what is wrong with them."""

import collections
import pathlib

import numpy as np

from vae_attn.data import cache, images
from vae_attn.data.ucsd_ped1_files import KNOWN_DAMAGE, LABELS, Clip

LOST, HEALED = 1, 2  # what became of a frame, 0 for those that were read


def decode(
    train: list[Clip],
    test: list[Clip],
    labels: list[np.ndarray],
    places: dict[pathlib.Path, tuple[str, int]],
    keep: cache.Keep,
    *,
    size: int,
) -> list[str]:
    """Reads every frame and mask, one at a time; returns what is wrong.

    Those that have a place, an array and a row of it, are kept; what is not is only checked.
    """

    def kept(path: pathlib.Path, row: np.ndarray) -> None:
        if path in places:
            keep(*places[path], row)

    def read_frame(path: pathlib.Path) -> tuple[int, int]:
        frame, sides = images.read_resized_image(path, size, channels=1)
        kept(path, frame)
        return sides

    def read_mask(path: pathlib.Path) -> tuple[tuple[int, int], bool]:
        mask = images.read_mask(path)
        kept(path, images.resize_mask(mask, size))
        return mask.shape, bool(mask.any())

    frames = [path for clip in train + test for path in clip.frames]
    masks = [path for clip in test for path in clip.masks]
    sizes, unreadable = images.read_many(read_frame, frames)
    sizes = dict(zip(frames, sizes, strict=True))
    reasons = dict(zip([path for path in frames if sizes[path] is None], unreadable, strict=True))
    found, problems = images.read_many(read_mask, masks)
    sizes |= {path: mask and mask[0] for path, mask in zip(masks, found, strict=True)}
    marked = {path: mask and mask[1] for path, mask in zip(masks, found, strict=True)}
    for clip in train + test:
        lost = [n for n, path in enumerate(clip.frames) if sizes[path] is None]
        if len(lost) > clip.may_lose or len(lost) == len(clip.frames):
            problems += [reasons[clip.frames[n]] for n in lost]
            continue
        for n in lost:
            path = clip.frames[n]
            healed = is_known(path) and _neighbour(clip, n, sizes)
            if healed and path in places:
                keep(*places[path], images.read_resized_image(healed, size, channels=1)[0])
            if path in places:
                name, row = places[path]
                keep(f"{name}_state", row, np.array(HEALED if healed else LOST, np.uint8))
        problems += _odd_sizes(clip, sizes)
    for clip, label in zip(test, labels, strict=False):  # without labels, nothing contradicts
        problems += _contradictions(clip, label, marked)
    return problems


def _odd_sizes(clip: Clip, sizes: dict[pathlib.Path, tuple[int, int] | None]) -> list[str]:
    """Frames and masks of another size than most of the clip's frames."""
    counts = collections.Counter(sizes[path] for path in clip.frames if sizes[path] is not None)
    if not counts:
        return []
    usual = counts.most_common(1)[0][0]
    return [
        f"{path}: {images.size_text(sizes[path])} pixels, but the frames of {clip.folder.name} "
        f"have {images.size_text(usual)}; restore it"
        for path in clip.frames + clip.masks
        if sizes[path] not in (None, usual)
    ]


def _contradictions(
    clip: Clip, label: np.ndarray, marked: dict[pathlib.Path, bool | None]
) -> list[str]:
    """Masks of a clip, marked anywhere or not, that do not fit their frame's label.

    A clip with gaps is reported elsewhere, and pairing its masks by order would invent some.
    """
    numbers = [f"{i + 1:03d}" for i in range(len(label))]
    if any([path.stem for path in paths] != numbers for paths in (clip.frames, clip.masks)):
        return []
    wrong = [
        path.stem
        for path, anomalous in zip(clip.masks, label, strict=True)
        if marked[path] not in (None, anomalous)
    ]
    if not wrong:
        return []
    return [
        f"{clip.folder}_gt: masks and {LABELS} disagree on whether frames "
        f"{', '.join(wrong)} are anomalous; restore whichever was changed"
    ]


def is_known(path: pathlib.Path) -> bool:
    """Whether a frame is damaged in the published archive."""
    return (path.parent.name, path.stem) in KNOWN_DAMAGE


def _neighbour(
    clip: Clip, index: int, sizes: dict[pathlib.Path, tuple[int, int] | None]
) -> pathlib.Path | None:
    """The frame before, else the frame after, of those that were read."""
    near = [n for n in (index - 1, index + 1) if 0 <= n < len(clip.frames)]
    return next((clip.frames[n] for n in near if sizes[clip.frames[n]] is not None), None)
