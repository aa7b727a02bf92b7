"""UCSD Ped1: clips of a walkway, where carts and cyclists are the anomalies.

Only some test clips have pixel masks (ten of 36); what is anomalous in the others is known by
frame, from `UCSDped1.m`. A clip without masks has no pixel truth, which is not "no anomaly".
"""

import collections
import functools
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from vae_attn.data import cache, images
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.frame_labels import parse_frame_labels, read_frame_labels
from vae_attn.data.layout import (
    check_settings,
    held_out_count,
    problems_error,
)
from vae_attn.data.ucsd_ped1_files import Clip, list_clips, numbered
from vae_attn.errors import UserError

__all__ = ["LAYOUT", "SOURCE", "load", "read_frame_labels", "read_masks"]

SOURCE = "http://www.svcl.ucsd.edu/projects/anomaly/dataset.htm"
LAYOUT = (
    "UCSDped1/Train/Train001/001.tif, Test/Test001/001.tif, Test/Test003_gt/001.bmp for the clips "
    "with pixel masks, and Test/UCSDped1.m"
)

_LABELS = "UCSDped1.m"


def load(
    data_dir: str | os.PathLike,
    *,
    image_size: int = 100,
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> AnomalyData:
    """Loads the official layout (see `LAYOUT`), grey, a label a frame.

    Training takes all frames of the training clips. A fifth of the test clips is set aside for
    validation, of which the normal frames are kept; no clip is split. They are drawn from the
    clips without masks while those last, so that every mask stays in the test set, and from
    clips with normal frames.

    Args:
      data_dir: the folder `UCSDped1`, or the one that holds it.
      image_size: frames and masks are resized to a square of this side (100 in the report).
      validation_fraction: share of the test clips used for validation.
      seed: of the draw.
      cache_dir: where decoded frames are kept, see `vae_attn.data.cache`.

    Returns:
      The data; classes "normal" and "anomalous"; frames are named "Test003/017". `has_mask` is
      True for the frames of clips with masks only.

    Raises:
      UserError: one sentence for a missing folder or an impossible setting; else all problems:
        frames or masks missing or of another size than their clip, unreadable files, a `.m` file
        with another number of clips, ranges beyond a clip, masks that contradict the frame labels.
    """
    check_settings(image_size=image_size, validation_fraction=validation_fraction)
    root = _find_root(pathlib.Path(data_dir))
    train, test, problems = list_clips(root)
    labels, wrong = parse_frame_labels(root / "Test" / _LABELS, [len(c.frames) for c in test])
    problems += wrong
    if wrong:
        labels = []  # half-read labels would only contradict the masks
    decode = functools.partial(_decode, train, test, labels, size=image_size)
    if problems:
        raise problems_error(root, problems + decode({}, lambda *_: None), layout=LAYOUT)
    held_out = _validation_clips(test, labels, validation_fraction, seed)
    validation, scored = _split(test, labels, held_out)
    arrays = _arrays(root, train, validation, scored, decode, image_size, cache_dir)
    masked = sum(bool(clip.masks) for n, clip in enumerate(test) if n not in held_out)
    return AnomalyData(
        name="UCSD Ped1",
        scores_note=(
            f"Of {len(test)} test clips {len(test) - len(held_out)} are scored, pixels on the "
            f"{masked} of them with masks; the other {len(held_out)} choose checkpoint and "
            "threshold."
        ),
        train=arrays["train"],
        validation=arrays["validation"],
        test=_labelled(scored, arrays["test"], arrays.get("masks")),
    )


def read_masks(mask_dir: pathlib.Path) -> Bool[np.ndarray, "frames height width"]:
    """Reads the pixel masks of one clip (a folder `TestNNN_gt`), in order, at their own size.

    Raises:
      UserError: all files that cannot be read, gaps in the numbering, or sizes that differ.
    """
    problems: list[str] = []
    paths = numbered(mask_dir, ".bmp", problems)
    masks, unreadable = images.read_many(images.read_mask, paths)
    problems += unreadable
    problems += [
        f"{path}: {images.size_text(mask.shape)} pixels, but {paths[0].name} has "
        f"{images.size_text(masks[0].shape)}; restore the mask"
        for path, mask in zip(paths, masks, strict=True)
        if mask is not None and masks[0] is not None and mask.shape != masks[0].shape
    ]
    if problems:
        raise problems_error(mask_dir, problems, layout="001.bmp, 002.bmp, ... of one size")
    return np.stack(masks)


def _find_root(data_dir: pathlib.Path) -> pathlib.Path:
    for root in (data_dir / "UCSDped1", data_dir):
        if (root / "Train").is_dir() and (root / "Test").is_dir():
            return root
    raise UserError(
        f"{data_dir}: holds no UCSD Ped1; download the UCSD anomaly detection data set from "
        f"{SOURCE}, unpack it and set data.dir to the folder of {LAYOUT}"
    )


class _Frame(NamedTuple):
    """A test frame, its mask if its clip has some, and whether it is anomalous."""

    path: pathlib.Path
    mask: pathlib.Path | None
    anomalous: bool


def _split(
    test: list[Clip], labels: list[np.ndarray], held_out: list[int]
) -> tuple[list[_Frame], list[_Frame]]:
    """The normal frames of the clips held out, and all frames of the others."""
    clips = [
        [
            _Frame(path, mask, bool(anomalous))
            for path, mask, anomalous in zip(
                clip.frames, clip.masks or [None] * len(clip.frames), label, strict=True
            )
        ]
        for clip, label in zip(test, labels, strict=True)
    ]
    validation = [frame for n in sorted(held_out) for frame in clips[n] if not frame.anomalous]
    scored = [frame for n, clip in enumerate(clips) if n not in held_out for frame in clip]
    return validation, scored


def _arrays(
    root: pathlib.Path,
    train: list[Clip],
    validation: list[_Frame],
    scored: list[_Frame],
    decode: Callable[..., list[str]],
    image_size: int,
    cache_dir: str | os.PathLike | None,
) -> dict[str, np.ndarray]:
    """Resized frames, and masks of the scored ones if any has one, decoded or from the cache."""
    paths = {
        "train": [path for clip in train for path in clip.frames],
        "validation": [frame.path for frame in validation],
        "test": [frame.path for frame in scored],
    }
    places = {path: (name, n) for name, of in paths.items() for n, path in enumerate(of)}
    masks = {frame.mask: ("masks", n) for n, frame in enumerate(scored) if frame.mask}

    def build(keep: cache.Keep) -> None:
        if problems := decode(places | masks, keep):
            raise problems_error(root, problems, layout=LAYOUT)

    key = cache.content_key(
        [*places, *masks, root / "Test" / _LABELS],
        kind="ucsd_ped1",
        size=image_size,
        counts=[len(of) for of in paths.values()],
        masked=[n for _, n in masks.values()],
    )
    square = (image_size, image_size)
    specs = {
        name: cache.Spec((len(of), *square, 1), np.dtype(np.uint8)) for name, of in paths.items()
    }
    if masks:
        specs["masks"] = cache.Spec((len(scored), *square), np.dtype(bool))
    return cache.load_or_build(key, specs, build, cache_dir=cache_dir)


def _decode(
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
        mask, sides = images.read_resized_mask(path, size)
        kept(path, mask)
        return sides, bool(mask.any())

    frames = [path for clip in train + test for path in clip.frames]
    masks = [path for clip in test for path in clip.masks]
    sizes, problems = images.read_many(read_frame, frames)
    found, unreadable = images.read_many(read_mask, masks)
    problems += unreadable
    sizes = dict(zip(frames, sizes, strict=True))
    sizes |= {path: mask and mask[0] for path, mask in zip(masks, found, strict=True)}
    marked = {path: mask and mask[1] for path, mask in zip(masks, found, strict=True)}
    for clip in train + test:
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

    A clip with gaps is told of elsewhere, and pairing its masks by order would invent some.
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
        f"{clip.folder}_gt: masks and {_LABELS} disagree on whether frames "
        f"{', '.join(wrong)} are anomalous; restore whichever was changed"
    ]


def _validation_clips(
    test: list[Clip], labels: list[np.ndarray], fraction: float, seed: int
) -> list[int]:
    """Draws clips: with normal frames and without masks first, with masks only if those run out."""
    order = np.random.default_rng(seed).permutation(len(test)).tolist()
    order.sort(key=lambda index: (bool(labels[index].all()), bool(test[index].masks)))
    if labels[order[0]].all():
        raise UserError(
            f"{test[0].folder.parent / _LABELS}: calls every test frame anomalous; validation "
            "needs normal ones"
        )
    return order[: held_out_count(len(test), fraction)]


def _labelled(
    scored: list[_Frame],
    frames: UInt8[np.ndarray, "n size size 1"],
    masks: Bool[np.ndarray, "n size size"] | None,
) -> LabelledImages:
    """Puts labels and names to the frames kept for testing."""
    return LabelledImages(
        images=frames,
        labels=np.array([frame.anomalous for frame in scored], np.int64),
        class_names=("normal", "anomalous"),
        names=tuple(f"{frame.path.parent.name}/{frame.path.stem}" for frame in scored),
        masks=masks,
        has_mask=np.array([frame.mask is not None for frame in scored]),
    )
