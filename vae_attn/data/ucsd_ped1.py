"""UCSD Ped1: clips of a walkway, where carts and cyclists are the anomalies.

Only some test clips have pixel masks (ten of 36); what is anomalous in the others is known by
frame, from `UCSDped1.m`. A clip without masks has no pixel truth, which is not "no anomaly".
"""

import dataclasses
import functools
import logging
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, UInt8

from vae_attn.data import cache, frame_stacks, images
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.frame_labels import last_frames, read_frame_labels
from vae_attn.data.layout import (
    check_settings,
    held_out_count,
    problems_error,
)
from vae_attn.data.ucsd_ped1_decoding import HEALED, LOST, is_known
from vae_attn.data.ucsd_ped1_decoding import decode as decode_clips
from vae_attn.data.ucsd_ped1_files import LABELS, Clip, list_clips
from vae_attn.errors import UserError

SOURCE = "http://www.svcl.ucsd.edu/projects/anomaly/dataset.htm"
LAYOUT = (
    "UCSDped1/Train/Train001/001.tif, Test/Test001/001.tif, Test/Test003_gt/001.bmp for the clips "
    "with pixel masks, and Test/UCSDped1.m"
)

_LOG = logging.getLogger("vae_attn")


def load(
    data_dir: str | os.PathLike[str],
    *,
    image_size: int = 100,
    frames: int = 1,
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> AnomalyData:
    """Loads the official layout (see `LAYOUT`), grey, one label per frame.

    Training takes all frames of the training clips. A fifth of the test clips is set aside for
    validation, of which the normal frames are kept; no clip is split. They are drawn from the
    clips without masks while those last, so that every mask stays in the test set, and from
    clips with normal frames.

    A frame that cannot be read, or is missing while later ones are there, is left out with a
    warning; one that is damaged in the published archive is replaced by its neighbour.

    Args:
      data_dir: the folder `UCSDped1`, or the one that holds it.
      image_size: frames and masks are resized to a square of this side (100 in the report).
      frames: channels of an image: the frame, and its differences to those before (`frame_stacks`).
      validation_fraction: share of the test clips used for validation.
      seed: of the draw.
      cache_dir: where decoded frames are kept, see `vae_attn.data.cache`.

    Returns:
      The data; classes "normal" and "anomalous"; frames are named "Test003/017". `has_mask` is
      True for the frames of clips with masks only.

    Raises:
      UserError: one sentence for a missing folder or an impossible setting; else all problems:
        clips that lack more than one frame in twenty, masks missing or unreadable, frames or masks
        of another size than their clip, a `.m` file with another number of clips, ranges beyond a
        clip, masks that contradict the frame labels.
    """
    check_settings(image_size=image_size, validation_fraction=validation_fraction)
    root = _find_root(pathlib.Path(data_dir))
    train, test, problems = list_clips(root)
    for clip, last in zip(test, last_frames(root / "Test" / LABELS), strict=False):
        clip.lengthen(last)
    labels, wrong = read_frame_labels(root / "Test" / LABELS, [len(c.frames) for c in test])
    problems += wrong
    if wrong:
        labels = []  # half-read labels would only contradict the masks
    decode = functools.partial(decode_clips, train, test, labels, size=image_size)
    if problems:
        raise problems_error(root, problems + decode({}, lambda *_: None), layout=LAYOUT)
    held_out = _validation_clips(test, labels, validation_fraction, seed)
    validation, scored = _split(test, labels, held_out)
    paths = {
        "train": [path for clip in train for path in clip.frames],
        "validation": [frame.path for frame in validation],
        "test": [frame.path for frame in scored],
    }
    arrays = _arrays(root, paths, scored, decode, image_size, cache_dir)
    lost = _warn_of_lost(root, paths, arrays)
    masked = sum(bool(clip.masks) for n, clip in enumerate(test) if n not in held_out)
    note = (
        f"Of {len(test)} test clips {len(test) - len(held_out)} are scored, pixels on the "
        f"{masked} of them with masks; the other {len(held_out)} choose checkpoint and threshold. "
        "Intervals treat consecutive frames as independent, and so are too narrow."
    )
    if count := int(lost["test"].sum()):
        note += f" Frames that cannot be read are not scored ({count})."
    if frames > 1:
        note += f" An image is a frame and its differences to the {frames - 1} before it."

    def stacked(name: str) -> np.ndarray:
        kept = [path for path, gone in zip(paths[name], lost[name], strict=True) if not gone]
        places = [(path.parent.name, int(path.stem)) for path in kept]
        return frame_stacks.stacks(_without(arrays[name], lost[name]), places, frames)

    labelled = _labelled(scored, arrays["test"], arrays.get("masks"))
    labelled = labelled.take(~lost["test"]) if lost["test"].any() else labelled
    return AnomalyData(
        name="UCSD Ped1",
        scores_note=note,
        caveat="consecutive frames count as independent images, though they are not (clips held "
        f"out: {len(held_out)}), so that the rate may be further off",
        train=stacked("train"),
        validation=stacked("validation"),
        test=dataclasses.replace(labelled, images=stacked("test")),
    )


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
    paths: dict[str, list[pathlib.Path]],
    scored: list[_Frame],
    decode: Callable[..., list[str]],
    image_size: int,
    cache_dir: str | os.PathLike[str] | None,
) -> dict[str, np.ndarray]:
    """What is kept of the files, decoded now or before; see `cache`.

    Under each name of `paths` the resized frames, and under `<name>_state` what became of them:
    0, `LOST` or `HEALED`. `masks` of the scored ones if any has one.
    """
    places = {path: (name, n) for name, of in paths.items() for n, path in enumerate(of)}
    masks = {frame.mask: ("masks", n) for n, frame in enumerate(scored) if frame.mask}

    def build(keep: cache.Keep) -> None:
        if problems := decode(places | masks, keep):
            raise problems_error(root, problems, layout=LAYOUT)

    key = cache.content_key(
        [*(path for path in [*places, *masks] if path.is_file()), root / "Test" / LABELS],
        kind="ucsd_ped1",
        absent=[n for n, path in enumerate([*places, *masks]) if not path.is_file()],
        known_damage=[n for n, path in enumerate(places) if is_known(path)],
        size=image_size,
        counts=[len(of) for of in paths.values()],
        masked=[n for _, n in masks.values()],
    )
    square = (image_size, image_size)
    specs = {
        name: cache.Spec((len(of), *square, 1), np.dtype(np.uint8)) for name, of in paths.items()
    }
    specs |= {
        f"{name}_state": cache.Spec((len(of),), np.dtype(np.uint8)) for name, of in paths.items()
    }
    if masks:
        specs["masks"] = cache.Spec((len(scored), *square), np.dtype(bool))
    return cache.load_or_build(key, specs, build, cache_dir=cache_dir)


def _warn_of_lost(
    root: pathlib.Path, paths: dict[str, list[pathlib.Path]], arrays: dict[str, np.ndarray]
) -> dict[str, Bool[np.ndarray, "_"]]:
    """Names the frames that were not read; returns which are left out."""
    state = np.concatenate([arrays[f"{name}_state"] for name in paths])
    every = [path.relative_to(root).with_suffix("") for of in paths.values() for path in of]
    for what, text in (
        (LOST, "these frames cannot be read or are missing, and are left out"),
        (
            HEALED,
            "these frames are damaged in the published archive; the frames beside them stand "
            "in for them",
        ),
    ):
        if names := [str(every[n]) for n in np.flatnonzero(state == what)]:
            _LOG.warning("%s: %s: %s", root, text, ", ".join(names))
    return {name: arrays[f"{name}_state"] == LOST for name in paths}


def _without(
    frames: UInt8[np.ndarray, "n size size 1"], lost: Bool[np.ndarray, "n"]
) -> UInt8[np.ndarray, "m size size 1"]:
    """The frames that were read, where they are if that is all of them."""
    return frames[~lost] if lost.any() else frames


def _validation_clips(
    test: list[Clip], labels: list[np.ndarray], fraction: float, seed: int
) -> list[int]:
    """Draws clips: with normal frames and without masks first, with masks only if those run out."""
    order = np.random.default_rng(seed).permutation(len(test)).tolist()
    order.sort(key=lambda index: (bool(labels[index].all()), bool(test[index].masks)))
    if labels[order[0]].all():
        raise UserError(
            f"{test[0].folder.parent / LABELS}: calls every test frame anomalous; validation "
            "needs normal ones"
        )
    return order[: held_out_count(len(test), fraction)]


def _labelled(
    scored: list[_Frame],
    frames: UInt8[np.ndarray, "n size size 1"],
    masks: Bool[np.ndarray, "n size size"] | None,
) -> LabelledImages:
    """Gives the frames kept for testing their labels, names and masks."""
    return LabelledImages(
        images=frames,
        labels=np.array([frame.anomalous for frame in scored], np.int64),
        class_names=("normal", "anomalous"),
        names=tuple(f"{frame.path.parent.name}/{frame.path.stem}" for frame in scored),
        masks=masks,
        has_mask=np.array([frame.mask is not None for frame in scored]),
        read_full_mask=None
        if masks is None
        else tuple(
            frame.mask and functools.partial(images.read_mask, frame.mask) for frame in scored
        ),
    )
