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
from vae_attn.data.layout import check_settings, held_out_count, problems_error
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
    channels: int = 3,
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
      channels: 1 for grey, 3 for RGB.
      validation_fraction: share of the training images held out, drawn by `seed`; at least one.
      seed: of the split.
      cache_dir: where decoded images are kept, see `vae_attn.data.cache`.

    Returns:
      The data, mapped from the cache; class 0 is "good", the defects follow by name; images are
      named "defect/000".

    Raises:
      UserError: one sentence for a missing folder or an impossible setting; else all problems of
        the data set with their paths: missing, extra, ambiguous or empty masks, a mask of
        another size, unreadable or truncated images, empty folders, files that are no images.
    """
    check_settings(image_size=image_size, validation_fraction=validation_fraction)
    if channels not in (1, 3):
        raise UserError(f"data.channels is {channels}; give 1 (grey) or 3 (RGB)")
    root = pathlib.Path(data_dir)
    if not root.is_dir():
        raise UserError(f"{root}: no such folder; set data.dir to a folder that holds {LAYOUT}")
    listing, problems = list_files(root)
    order = np.random.default_rng(seed).permutation(len(listing.train))
    n_validation = held_out_count(len(order), validation_fraction)
    # The training images, then those of validation: so each are one piece of the kept array.
    order = np.concatenate([np.sort(order[n_validation:]), np.sort(order[:n_validation])])
    arrays = _arrays(
        root,
        listing,
        [*(listing.train[n] for n in order), *listing.test],
        problems,
        image_size=image_size,
        channels=channels,
        cache_dir=cache_dir,
    )
    if not listing.has_truth:
        _LOG.info("%s has no ground_truth: only images are scored", root)
    pictures, n_train = arrays["images"], len(order) - n_validation
    return AnomalyData(
        name=root.resolve().name,
        train=pictures[:n_train],
        validation=pictures[n_train : len(order)],
        test=_labelled(listing, pictures[len(order) :], arrays.get("masks")),
    )


def _labelled(
    listing: Listing,
    pictures: UInt8[np.ndarray, "n size size channels"],
    masks: Bool[np.ndarray, "n size size"] | None,
) -> LabelledImages:
    """Puts labels and names to the test images."""
    classes = [path.parent.name for path in listing.test]
    return LabelledImages(
        images=pictures,
        labels=np.array([listing.classes.index(name) for name in classes]),
        class_names=tuple(listing.classes),
        names=tuple(f"{path.parent.name}/{path.stem}" for path in listing.test),
        masks=masks,
        has_mask=np.full(len(pictures), listing.has_truth),
    )


def _arrays(
    root: pathlib.Path,
    listing: Listing,
    ordered: list[pathlib.Path],
    problems: list[str],
    *,
    image_size: int,
    channels: int,
    cache_dir: str | os.PathLike | None,
) -> dict[str, np.ndarray]:
    """The resized images, as they are ordered, and masks of the test images; see `cache`."""

    def build(keep: cache.Keep) -> None:
        found = problems + _decode(listing, ordered, keep, image_size=image_size, channels=channels)
        if found:
            raise problems_error(root, found, layout=LAYOUT)

    if problems:
        build(lambda *_: None)  # raises, with what decoding finds added
    masked = [n for n, path in enumerate(listing.test) if path in listing.masks]
    key = cache.content_key(
        [*ordered, *(listing.masks[listing.test[n]] for n in masked)],
        kind="folder",
        size=image_size,
        channels=channels,
        masked=masked if listing.has_truth else None,
    )
    square = (image_size, image_size)
    specs = {"images": cache.Spec((len(ordered), *square, channels), np.dtype(np.uint8))}
    if listing.has_truth:
        specs["masks"] = cache.Spec((len(listing.test), *square), np.dtype(bool))
    return cache.load_or_build(key, specs, build, cache_dir=cache_dir)


def _decode(
    listing: Listing,
    ordered: list[pathlib.Path],
    keep: cache.Keep,
    *,
    image_size: int,
    channels: int,
) -> list[str]:
    """Reads and keeps every image and mask, one at a time; returns what is wrong."""
    places = {path: n for n, path in enumerate(ordered)}
    test_places = {path: n for n, path in enumerate(listing.test)}

    def read_image(path: pathlib.Path) -> tuple[int, int]:
        image, size = images.read_resized_image(path, image_size, channels=channels)
        keep("images", places[path], image)
        return size

    def read_mask(path: pathlib.Path) -> tuple[tuple[int, int], bool]:
        mask, size = images.read_resized_mask(listing.masks[path], image_size)
        keep("masks", test_places[path], mask)
        return size, bool(mask.any())

    paths = listing.train + listing.test
    sizes, problems = images.read_many(read_image, paths)
    sizes = dict(zip(paths, sizes, strict=True))
    masked = [path for path in listing.test if path in listing.masks]
    masks, unreadable = images.read_many(read_mask, masked)
    problems += unreadable
    for path, found in zip(masked, masks, strict=True):
        if found is None:
            continue
        size, any_defect = found
        if sizes[path] is not None and sizes[path] != size:
            problems.append(
                f"{listing.masks[path]}: {images.size_text(size)} pixels, but {path} has "
                f"{images.size_text(sizes[path])}; draw the mask at the image's size"
            )
        if not any_defect:
            problems.append(
                f"{listing.masks[path]}: all black, though {path} is called defective; mark the "
                f"defect or move the image to test/{NORMAL}"
            )
    return problems
