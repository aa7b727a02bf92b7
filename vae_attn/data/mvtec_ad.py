"""MVTec-AD, the industrial inspection data set: one category at a time, in colour."""

import dataclasses
import logging
import os
import pathlib
from typing import NamedTuple

from vae_attn.data import folder
from vae_attn.data.dataset import AnomalyData
from vae_attn.errors import UserError, shown

_LOG = logging.getLogger("vae_attn")

SOURCE = "https://www.mvtec.com/company/research/datasets/mvtec-ad"


class Mirror(NamedTuple):
    """Which mirrored images may be trained on.

    Attributes:
      horizontal: left and right may be exchanged.
      vertical: top and bottom may be exchanged.
      reason: why, or why not.
    """

    horizontal: bool
    vertical: bool
    reason: str


# The report mirrors "where the object permits" without saying where. A mirror is permitted only
# if the mirrored image could be a photograph of another good object: else the model learns to
# reconstruct what is a defect in this category. Only the bottle was looked at for this table; the
# others rest on general knowledge of the data set, and where in doubt the mirror is forbidden.
MIRRORS: dict[str, Mirror] = {
    "bottle": Mirror(
        False, False, "a round rim, but its reflections are always at the same places"
    ),
    "cable": Mirror(False, False, "three wires of set colours in set places; swapped is a defect"),
    "capsule": Mirror(False, False, "printed text, and two halves of different colours"),
    "carpet": Mirror(True, True, "a woven texture without a preferred side"),
    "grid": Mirror(True, True, "a mesh of crossing wires, which a mirror maps onto itself"),
    "hazelnut": Mirror(True, True, "a nut lying in any direction"),
    "leather": Mirror(True, True, "an irregular grain without a preferred side"),
    "metal_nut": Mirror(False, False, "its teeth have a sense of rotation; flipped is a defect"),
    "pill": Mirror(False, False, "printed text"),
    "screw": Mirror(False, False, "a right-handed thread would turn left-handed"),
    "tile": Mirror(True, True, "irregular speckles without a preferred side"),
    "toothbrush": Mirror(True, False, "symmetrical about its long axis, but always this way up"),
    "transistor": Mirror(False, False, "three different legs, set places; misplaced is a defect"),
    "wood": Mirror(True, True, "a mirror keeps the direction of the grain"),
    "zipper": Mirror(False, False, "interlocked teeth of two rows; handedness in doubt"),
}

# Objects that always lie the same way under the same light: turned by more than the camera's play
# they are no longer normal. The bottle's held-out normal images were reconstructed better without
# turned and mirrored ones in training; the others, again, rest on general knowledge.
FIXED_POSE: frozenset[str] = frozenset(
    ("bottle", "cable", "capsule", "pill", "toothbrush", "transistor", "zipper")
)
FIXED_POSE_ROTATION = 3.0  # degrees in either direction

CATEGORIES: tuple[str, ...] = tuple(MIRRORS)

# The ten categories of the report's Table 4, in its order.
TABLE4_CATEGORIES: tuple[str, ...] = (
    "carpet",
    "leather",
    "tile",
    "wood",
    "cable",
    "capsule",
    "hazelnut",
    "metal_nut",
    "pill",
    "transistor",
)

# What may stand in place of a category, for one run of each.
GROUPS: dict[str, tuple[str, ...]] = {"all": CATEGORIES, "table4": TABLE4_CATEGORIES}


def augmentation(category: str, *, keep_pose: bool) -> dict[str, bool | float]:
    """The `data` keys of the augmentation that a category permits.

    Args:
      category: of MVTec-AD; or a group of them (a key of `GROUPS`), whose runs have their own.
      keep_pose: whether objects of a fixed pose are not mirrored, and hardly rotated.

    Returns:
      The mirrors of `MIRRORS`; and for a category of `FIXED_POSE`, if it is kept, none and the
      largest rotation.

    Raises:
      UserError: for an unknown category; the message lists all.
    """
    if category in GROUPS:
        return {}
    if category not in CATEGORIES:
        raise UserError(
            f"{shown(repr(category))} is no category of MVTec-AD: give one of "
            f"{', '.join(CATEGORIES)}, or {' or '.join(GROUPS)}."
        )
    if keep_pose and category in FIXED_POSE:
        return {
            "rotation": FIXED_POSE_ROTATION,
            "mirror_horizontal": False,
            "mirror_vertical": False,
        }
    mirror = MIRRORS[category]
    return {"mirror_horizontal": mirror.horizontal, "mirror_vertical": mirror.vertical}


def present(data_dir: str | os.PathLike[str], group: str) -> tuple[str, ...]:
    """The categories of a group (a key of `GROUPS`) whose folders are in `data_dir`.

    Those that it lacks are logged.

    Raises:
      UserError: there is none.
    """
    found = tuple(c for c in GROUPS[group] if (pathlib.Path(data_dir) / c).is_dir())
    if not found:
        raise UserError(
            f"{data_dir}: holds no category of MVTec-AD; download it from {SOURCE}, unpack it and "
            "set data.dir to the folder that holds the categories"
        )
    if missing := [category for category in GROUPS[group] if category not in found]:
        skipped = ", ".join(missing)
        _LOG.warning("%s lacks these categories, which are skipped: %s", data_dir, skipped)
    return found


def load(
    data_dir: str | os.PathLike[str],
    category: str,
    *,
    image_size: int = 256,
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> AnomalyData:
    """Loads one category in the official layout, always as RGB.

    `grid`, `screw` and `zipper` are single-channel on disk; their three channels are equal.

    Args:
      data_dir: the folder that holds the categories.
      category: one of `CATEGORIES`.
      image_size: images and masks are resized to a square of this side.
      validation_fraction: share of the training images held out (0.2 in the report).
      seed: of the split.
      cache_dir: where decoded images are kept, see `vae_attn.data.cache`.

    Returns:
      The data, as from `vae_attn.data.folder.load`.

    Raises:
      UserError: an unknown category, a missing folder, or what `vae_attn.data.folder.load` finds.
    """
    if category not in CATEGORIES:
        raise UserError(
            f"{category!r} is no category of MVTec-AD; take one of {', '.join(CATEGORIES)}, or "
            "configs/folder.py for other images"
        )
    root = pathlib.Path(data_dir) / category
    if not root.is_dir():
        raise UserError(
            f"{root}: no such folder; download MVTec-AD from {SOURCE}, unpack it and set "
            f"data.dir to the folder that holds {category}/train/good, {category}/test and "
            f"{category}/ground_truth"
        )
    data = folder.load(
        root,
        image_size=image_size,
        channels=3,
        validation_fraction=validation_fraction,
        seed=seed,
        cache_dir=cache_dir,
    )
    return dataclasses.replace(data, name=f"MVTec-AD {data.name}")
