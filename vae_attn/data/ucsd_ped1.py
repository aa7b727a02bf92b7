"""UCSD Ped1: clips of a walkway, where carts and cyclists are the anomalies.

Only some test clips have pixel masks (ten of 36); what is anomalous in the others is known by
frame, from `UCSDped1.m`. A clip without masks has no pixel truth, which is not "no anomaly".
"""

import collections
import os
import pathlib

import numpy as np
from jaxtyping import Bool

from vae_attn.data import cache, images
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.frame_labels import parse_frame_labels, read_frame_labels
from vae_attn.data.layout import (
    check_settings,
    data_name,
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
    counts = [len(clip.frames) for clip in test]
    labels, wrong = parse_frame_labels(root / "Test" / _LABELS, counts)
    problems += wrong
    if wrong:
        labels = []  # half-read labels would only contradict the masks
    arrays = _arrays(root, train, test, labels, problems, image_size, cache_dir)
    held_out = _validation_clips(test, labels, validation_fraction, seed)
    clip_of_frame = np.repeat(np.arange(len(test)), counts)
    in_validation = np.isin(clip_of_frame, held_out)
    masked = sum(bool(clip.masks) for n, clip in enumerate(test) if n not in held_out)
    return AnomalyData(
        name=data_name("UCSD Ped1", root),
        scores_note=(
            f"Of {len(test)} test clips {len(test) - len(held_out)} are scored, pixels on the "
            f"{masked} of them with masks; the other {len(held_out)} choose checkpoint and "
            "threshold."
        ),
        train=arrays["train"],
        validation=np.asarray(arrays["test"][in_validation & ~np.concatenate(labels)]),
        test=_labelled(test, labels, arrays, ~in_validation),
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


def _arrays(
    root: pathlib.Path,
    train: list[Clip],
    test: list[Clip],
    labels: list[np.ndarray],
    problems: list[str],
    image_size: int,
    cache_dir: str | os.PathLike | None,
) -> dict[str, np.ndarray]:
    """Resized frames and masks, decoded or from the cache."""

    def build() -> dict[str, np.ndarray]:
        decoded = _decode(train, test, labels, problems, image_size)
        if problems:
            raise problems_error(root, problems, layout=LAYOUT)
        return decoded

    if problems:
        return build()  # raises, with what decoding finds added
    masked = [index for index, clip in enumerate(test) if clip.masks]
    paths = [path for clip in train + test for path in clip.frames]
    paths += [path for index in masked for path in test[index].masks]
    key = cache.content_key(
        [*paths, root / "Test" / _LABELS],
        kind="ucsd_ped1",
        size=image_size,
        counts=[[len(clip.frames) for clip in split] for split in (train, test)],
        masked=masked,
    )
    names = ("train", "test", "masks") if masked else ("train", "test")
    return cache.load_or_build(key, names, build, cache_dir=cache_dir)


def _decode(
    train: list[Clip],
    test: list[Clip],
    labels: list[np.ndarray],
    problems: list[str],
    size: int,
) -> dict[str, np.ndarray]:
    """Reads every frame and mask; appends what is wrong to `problems`."""

    def read_frame(path: pathlib.Path):
        return images.read_resized_image(path, size, channels=1)

    def read_mask(path: pathlib.Path):
        return images.read_resized_mask(path, size)

    def read_all(read, paths):
        results, unreadable = images.read_many(read, paths)
        problems.extend(unreadable)
        return dict(zip(paths, results, strict=True))

    train_frames = read_all(read_frame, [path for clip in train for path in clip.frames])
    test_frames = read_all(read_frame, [path for clip in test for path in clip.frames])
    masks = read_all(read_mask, [path for clip in test for path in clip.masks])
    for clip in train + test:
        problems += _odd_sizes(clip, train_frames | test_frames | masks)
    for clip, label in zip(test, labels, strict=False):  # without labels, nothing contradicts
        problems += _contradictions(clip, label, masks)
    if problems:
        return {}
    decoded = {
        "train": np.stack([frame for frame, _ in train_frames.values()]),
        "test": np.stack([frame for frame, _ in test_frames.values()]),
    }
    if masks:
        decoded["masks"] = np.stack([mask for mask, _ in masks.values()])
    return decoded


def _odd_sizes(clip: Clip, read: dict) -> list[str]:
    """Frames and masks of another size than most of the clip's frames."""
    sizes = collections.Counter(read[path][1] for path in clip.frames if read[path] is not None)
    if not sizes:
        return []
    usual = sizes.most_common(1)[0][0]
    return [
        f"{path}: {images.size_text(read[path][1])} pixels, but the frames of {clip.folder.name} "
        f"have {images.size_text(usual)}; restore it"
        for path in clip.frames + clip.masks
        if read[path] is not None and read[path][1] != usual
    ]


def _contradictions(clip: Clip, label: np.ndarray, masks: dict) -> list[str]:
    """Masks of a clip that do not fit their frame's label.

    A clip with gaps is told of elsewhere, and pairing its masks by order would invent some.
    """
    numbers = [f"{i + 1:03d}" for i in range(len(label))]
    if any([path.stem for path in paths] != numbers for paths in (clip.frames, clip.masks)):
        return []
    wrong = [
        path.stem
        for path, anomalous in zip(clip.masks, label, strict=True)
        if masks[path] is not None and masks[path][0].any() != anomalous
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
    test: list[Clip],
    labels: list[np.ndarray],
    arrays: dict[str, np.ndarray],
    keep: np.ndarray,
) -> LabelledImages:
    """The frames kept for testing, with labels, names and masks."""
    frames = arrays["test"]
    has_mask = np.repeat([bool(clip.masks) for clip in test], [len(clip.frames) for clip in test])
    masks = None
    if has_mask.any():
        masks = np.zeros(frames.shape[:3], bool)
        masks[has_mask] = arrays["masks"]
        masks = masks[keep]
    names = [f"{clip.folder.name}/{frame.stem}" for clip in test for frame in clip.frames]
    return LabelledImages(
        images=np.asarray(frames[keep]),
        labels=np.concatenate(labels)[keep].astype(np.int64),
        class_names=("normal", "anomalous"),
        names=tuple(np.array(names)[keep].tolist()),
        masks=masks,
        has_mask=has_mask[keep],
    )
