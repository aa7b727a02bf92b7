"""Any folder of images in the MVTec-AD layout: one's own data, pixel masks optional.

Everything is checked before training, and all that is wrong is told at once.
"""

import logging
import os
import pathlib

import numpy as np
from jaxtyping import Bool, UInt8

from vae_attn.data import cache, images
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.folder_files import NORMAL, Listing, list_files
from vae_attn.data.layout import check_settings, data_name, held_out_count, problems_error
from vae_attn.errors import UserError

LAYOUT = (
    "train/good/*, test/good/*, test/<defect>/* and, where pixel masks are known, "
    "ground_truth/<defect>/<name of the image>_mask.png; images are png, jpg, bmp or tif"
)

_LOG = logging.getLogger("vae_attn")


def load(
    data_dir: str | os.PathLike,
    *,
    image_size: int = 256,
    channels: int | None = None,
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache_dir: str | os.PathLike | None = None,
) -> AnomalyData:
    """Loads a folder in the MVTec-AD layout (see `LAYOUT`), of any size and format.

    Args:
      data_dir: the folder that holds `train` and `test`. Without a folder `ground_truth` there
        is no pixel truth; with one, every defective image needs its mask, named like the image
        or with `_mask` behind its name.
      image_size: images and masks are resized to a square of this side (no aspect ratio kept).
      channels: 1 for grey, 3 for RGB, None for RGB if any image has colour.
      validation_fraction: share of the training images held out, drawn by `seed`; at least one.
      seed: of the split.
      cache_dir: where decoded images are kept, see `vae_attn.data.cache`.

    Returns:
      The data; class 0 is "good", the defects follow by name; images are named "defect/000".

    Raises:
      UserError: one sentence for a missing folder or an impossible setting; else all problems of
        the data set with their paths: missing, extra, ambiguous or empty masks, a mask of
        another size, unreadable or truncated images, empty folders, files that are no images.
    """
    check_settings(image_size=image_size, validation_fraction=validation_fraction)
    if channels not in (None, 1, 3):
        raise UserError(f"data.channels is {channels}; give 1 (grey), 3 (RGB) or None (as found)")
    root = pathlib.Path(data_dir)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set data.dir to a folder that holds {LAYOUT}")
    listing, problems = list_files(root)
    arrays = _arrays(
        root,
        listing,
        problems,
        image_size=image_size,
        channels=channels,
        cache_dir=cache_dir,
    )
    if not listing.has_truth:
        _LOG.info("%s has no ground_truth: only images are scored", root)
    n_train = len(listing.train)
    order = np.random.default_rng(seed).permutation(n_train)
    n_validation = held_out_count(n_train, validation_fraction)
    pictures = arrays["images"]
    return AnomalyData(
        name=data_name(root.resolve().name, root),
        train=np.asarray(pictures[np.sort(order[n_validation:])]),
        validation=np.asarray(pictures[np.sort(order[:n_validation])]),
        test=_labelled(listing, pictures[n_train:], arrays.get("masks")),
    )


def _labelled(
    listing: Listing,
    pictures: UInt8[np.ndarray, "n size size channels"],
    masks: Bool[np.ndarray, "n_masks size size"] | None,
) -> LabelledImages:
    """Puts labels, names and masks to the test images."""
    classes = [path.parent.name for path in listing.test]
    truth = None
    if listing.has_truth:
        truth = np.zeros(pictures.shape[:3], bool)
        if masks is not None:
            truth[[path in listing.masks for path in listing.test]] = masks
    return LabelledImages(
        images=pictures,
        labels=np.array([listing.classes.index(name) for name in classes]),
        class_names=tuple(listing.classes),
        names=tuple(f"{path.parent.name}/{path.stem}" for path in listing.test),
        masks=truth,
        has_mask=np.full(len(pictures), listing.has_truth),
    )


def _arrays(
    root: pathlib.Path,
    listing: Listing,
    problems: list[str],
    *,
    image_size: int,
    channels: int | None,
    cache_dir: str | os.PathLike | None,
) -> dict[str, np.ndarray]:
    """The resized images (training, then test) and masks, decoded or from the cache."""
    pictures = listing.train + listing.test
    masks = [listing.masks[path] for path in pictures if path in listing.masks]

    def build() -> dict[str, np.ndarray]:
        decoded = _decode(listing, problems, image_size=image_size, channels=channels)
        if problems:
            raise problems_error(root, problems, layout=LAYOUT)
        return decoded

    if problems:
        return build()  # raises, with what decoding finds added
    key = cache.content_key(
        pictures + masks, kind="folder", size=image_size, channels=channels, masks=len(masks)
    )
    names = ("images", "masks") if masks else ("images",)
    return cache.load_or_build(key, names, build, cache_dir=cache_dir)


def _decode(
    listing: Listing, problems: list[str], *, image_size: int, channels: int | None
) -> dict[str, np.ndarray]:
    """Reads every image and mask; appends what is wrong to `problems`."""

    def read_image(path: pathlib.Path):
        return images.read_resized_image(path, image_size, channels=channels)

    def read_mask(path: pathlib.Path):
        return images.read_resized_mask(path, image_size)

    paths = listing.train + listing.test
    pictures, unreadable = images.read_many(read_image, paths)
    problems += unreadable
    masked = [path for path in listing.test if path in listing.masks]
    masks, unreadable = images.read_many(read_mask, [listing.masks[path] for path in masked])
    problems += unreadable
    decoded = dict(zip(paths, pictures, strict=True))
    for path, mask in zip(masked, masks, strict=True):
        if mask is None:
            continue
        if decoded[path] is not None and decoded[path][1] != mask[1]:
            problems.append(
                f"{listing.masks[path]}: {images.size_text(mask[1])} pixels, but {path} has "
                f"{images.size_text(decoded[path][1])}; draw the mask at the image's size"
            )
        if not mask[0].any():
            problems.append(
                f"{listing.masks[path]}: all black, though {path} is called defective; mark the "
                f"defect or move the image to test/{NORMAL}"
            )
    if problems:
        return {}
    deepest = max(picture.shape[-1] for picture, _ in pictures)
    stacked = {"images": np.stack([images.to_channels(p, deepest) for p, _ in pictures])}
    if masks:
        stacked["masks"] = np.stack([mask for mask, _ in masks])
    return stacked
