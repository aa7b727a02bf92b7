"""Any folder of images in the MVTec-AD layout: your own data, pixel masks optional.

Everything is checked before training, and all that is wrong is reported at once.
"""

import dataclasses
import functools
import hashlib
import logging
import os
import pathlib

import numpy as np
from jaxtyping import Int, UInt8

from vae_attn.data import cache, images
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.folder_files import NORMAL, Listing, list_files
from vae_attn.data.image_files import ALL_LEVELS, Levels
from vae_attn.data.layout import check_settings, held_out_count, problems_error
from vae_attn.errors import UserError

LAYOUT = (
    "train/good/* and, as far as there are any, test/good/*, test/<defect>/* and "
    "ground_truth/<defect>/<name of the image>_mask.png"
)
_EXAMPLES = 3  # pairs in a warning of images that are there twice
_LOOKED_AT = 64  # training images, for whether they are grey

_LOG = logging.getLogger("vae_attn")


def load(
    data_dir: str | os.PathLike[str],
    *,
    image_size: int = 256,
    channels: int = 3,
    validation_fraction: float = 0.2,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
) -> AnomalyData:
    """Loads a folder in the MVTec-AD layout (see `LAYOUT`), of any size and format.

    Args:
      data_dir: the folder that holds `train`. Without `test` nothing is scored (see
        `AnomalyData.missing`). Without a folder `ground_truth` there is no pixel truth; with one,
        every defective image needs its mask, named like the image or with `_mask` after its
        name, or several masks in a folder of the image's name, whose union counts.
      image_size: images and masks are resized to a square of this side (no aspect ratio kept).
      channels: 1 for grey, 3 for RGB.
      validation_fraction: share of the training images held out, drawn by `seed`; at least one.
        Where there is a folder `validation/good`, its images are held out instead.
      seed: of the split.
      cache_dir: where decoded images are kept, see `vae_attn.data.cache`.

    Returns:
      The data, mapped from the cache; class 0 is "good", the defects follow by name; images are
      named "defect/000". Files with more than 8 bits per channel are scaled by the training
      images' range (`AnomalyData.levels`).

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
    split = _Split.draw(listing, validation_fraction, seed)
    if problems:
        # Decoding finds what else is wrong; nothing is kept.
        raise problems_error(root, problems + _decode(split, lambda *_: None), layout=LAYOUT)
    arrays = _arrays(root, split, image_size=image_size, channels=channels, cache_dir=cache_dir)
    levels = _levels(split, arrays["extents"])
    _warn_of_copies(root, split, arrays["digests"])
    _warn_of_cut_levels(split, arrays["extents"], levels)
    start, stop = len(split.train), len(split.normal)
    pictures = arrays["images"]
    _hint_at_grey(root, pictures[:start])
    return AnomalyData(
        name=root.resolve().name,
        train=pictures[:start],
        validation=pictures[start:stop],
        test=_labelled(listing, pictures[stop:], arrays),
        missing=tuple(f"{root}: {what}" for what in listing.missing),
        levels=levels,
    )


@dataclasses.dataclass(frozen=True)
class _Split:
    """The files in the order in which they are kept, so that each part is one piece."""

    listing: Listing
    train: list[pathlib.Path]
    validation: list[pathlib.Path]

    @classmethod
    def draw(cls, listing: Listing, validation_fraction: float, seed: int) -> "_Split":
        """Holds some training images out, unless the data set does so itself."""
        if listing.validation:
            return cls(listing, listing.train, listing.validation)
        order = np.random.default_rng(seed).permutation(len(listing.train))
        count = held_out_count(len(order), validation_fraction)
        kept, held_out = np.sort(order[count:]), np.sort(order[:count])
        return cls(listing, [listing.train[n] for n in kept], [listing.train[n] for n in held_out])

    @property
    def normal(self) -> list[pathlib.Path]:
        """The images of which nothing is scored."""
        return self.train + self.validation

    @property
    def ordered(self) -> list[pathlib.Path]:
        """All images."""
        return self.normal + self.listing.test


def _labelled(
    listing: Listing,
    pictures: UInt8[np.ndarray, "n size size channels"],
    arrays: dict[str, np.ndarray],
) -> LabelledImages:
    """Gives the test images their labels, names and masks."""
    classes = [path.parent.name for path in listing.test]
    full = None
    if "masks" in arrays:
        full = tuple(
            functools.partial(images.read_union, listing.masks[path])
            if path in listing.masks
            else functools.partial(np.zeros, tuple(size), bool)
            for path, size in zip(listing.test, arrays["sizes"].tolist(), strict=True)
        )
    return LabelledImages(
        images=pictures,
        labels=np.array([listing.classes.index(name) for name in classes], np.int64),
        class_names=tuple(listing.classes),
        names=tuple(f"{path.parent.name}/{path.stem}" for path in listing.test),
        masks=arrays.get("masks"),
        has_mask=np.full(len(pictures), "masks" in arrays),
        read_full_mask=full,
    )


def _arrays(
    root: pathlib.Path,
    split: _Split,
    *,
    image_size: int,
    channels: int,
    cache_dir: str | os.PathLike[str] | None,
) -> dict[str, np.ndarray]:
    """What is kept of the files, decoded now or before; see `cache`.

    `images`, in the order of the split; of each of them the digest of its pixels (`digests`) and
    its smallest and largest level, -1 in files of 8 bits (`extents`); of the test images height
    and width (`sizes`) and the `masks`.
    """
    listing, ordered = split.listing, split.ordered

    def build(keep: cache.Keep) -> None:
        if found := _decode(split, keep, image_size=image_size, channels=channels):
            raise problems_error(root, found, layout=LAYOUT)

    masked = [(n, listing.masks.get(path, ())) for n, path in enumerate(listing.test)]
    key = cache.content_key(
        [*ordered, *(file for _, files in masked for file in files)],
        kind="folder",
        scaled_by="extents",
        size=image_size,
        channels=channels,
        counts=[len(split.train), len(split.validation)],
        masked=[(n, len(files)) for n, files in masked if files] if listing.has_truth else None,
    )
    square, count = (image_size, image_size), len(ordered)
    specs = {
        "images": cache.Spec((count, *square, channels), np.dtype(np.uint8)),
        "digests": cache.Spec((count, hashlib.sha256().digest_size), np.dtype(np.uint8)),
        "extents": cache.Spec((count, 2), np.dtype(np.int64)),
    }
    if listing.test:
        specs["sizes"] = cache.Spec((len(listing.test), 2), np.dtype(np.int64))
        if listing.has_truth:
            specs["masks"] = cache.Spec((len(listing.test), *square), np.dtype(bool))
    return cache.load_or_build(key, specs, build, cache_dir=cache_dir)


def _decode(
    split: _Split, keep: cache.Keep, *, image_size: int = 1, channels: int = 3
) -> list[str]:
    """Reads and keeps every image and mask, one at a time; returns what is wrong."""
    listing = split.listing
    places = {path: n for n, path in enumerate(split.ordered)}
    test_places = {path: n for n, path in enumerate(listing.test)}
    # Before all else, as levels are those of all normal images; what cannot be read comes below.
    extents, _ = images.read_many(images.extent, split.normal)
    levels = images.levels_of(extents)
    extents = dict(zip(split.normal, extents, strict=True))

    def read_image(path: pathlib.Path) -> tuple[int, int]:
        image = images.read_image(path, channels=channels, levels=levels)
        extent = extents[path] if path in extents else images.extent(path)
        digest = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).digest()
        keep("images", places[path], images.resize_image(image, image_size))
        keep("digests", places[path], np.frombuffer(digest, np.uint8))
        keep("extents", places[path], np.array(extent or (-1, -1), np.int64))
        if path in test_places:
            keep("sizes", test_places[path], np.array(image.shape[:2], np.int64))
        return image.shape[:2]

    def read_mask(path: pathlib.Path) -> tuple[tuple[int, int], bool]:
        mask = images.read_union(listing.masks[path])
        keep("masks", test_places[path], images.resize_mask(mask, image_size))
        return mask.shape, bool(mask.any())

    sizes, problems = images.read_many(read_image, split.ordered)
    sizes = dict(zip(split.ordered, sizes, strict=True))
    masked = [path for path in listing.test if listing.masks.get(path)]
    masks, unreadable = images.read_many(read_mask, masked)
    problems += unreadable
    for path, found in zip(masked, masks, strict=True):
        if found is None:
            continue
        size, any_defect = found
        files = listing.masks[path]
        mask = files[0] if len(files) == 1 else files[0].parent
        if sizes[path] is not None and sizes[path] != size:
            problems.append(
                f"{mask}: {images.size_text(size)} pixels, but {path} has "
                f"{images.size_text(sizes[path])}; draw the mask at the image's size"
            )
        if not any_defect:
            problems.append(
                f"{mask}: all black, though {path} is called defective; mark the "
                f"defect or move the image to test/{NORMAL}"
            )
    return problems


def _levels(split: _Split, extents: Int[np.ndarray, "n 2"]) -> Levels:
    """The levels of deep files that became 0 and 255."""
    of_normal = extents[: len(split.normal)].tolist()
    return images.levels_of(None if low < 0 else (low, high) for low, high in of_normal)


def _warn_of_copies(
    root: pathlib.Path, split: _Split, digests: UInt8[np.ndarray, "n bytes"]
) -> None:
    """Names test images and held-out images that the model has learned from."""
    keys = [row.tobytes() for row in digests]
    start, stop = len(split.train), len(split.normal)
    train, held_out, test = keys[:start], keys[start:stop], keys[stop:]
    normal = dict(zip(held_out + train, split.validation + split.train, strict=True))
    for learned, found, paths, what, so in (
        (set(train), held_out, split.validation, "held-out images", "thresholds are too low"),
        (set(keys[:stop]), test, split.listing.test, "test images", "their scores are too good"),
    ):
        pairs = [
            (path, normal[key]) for key, path in zip(found, paths, strict=True) if key in learned
        ]
        if not pairs:
            continue
        examples = ", ".join(
            f"{path.relative_to(root)} is {original.relative_to(root)}"
            for path, original in pairs[:_EXAMPLES]
        )
        more = ", ..." if len(pairs) > _EXAMPLES else ""
        _LOG.warning(
            "%s: %d of %d %s are copies of images in train/%s (%s%s): %s; remove the copies",
            root,
            len(pairs),
            len(found),
            what,
            NORMAL,
            examples,
            more,
            so,
        )


def _hint_at_grey(root: pathlib.Path, train: UInt8[np.ndarray, "n size size channels"]) -> None:
    """Says how grey images are trained as what they are."""
    first = train[:_LOOKED_AT]
    if first.shape[-1] == 3 and (first == first[..., :1]).all():
        _LOG.info(
            "%s: the training images (the first %d were looked at) are grey, and the model sees "
            "them in colour; --config.data.channels=1 trains one that counts each pixel once and "
            "has no tint",
            root,
            len(first),
        )


def _warn_of_cut_levels(split: _Split, extents: Int[np.ndarray, "n 2"], levels: Levels) -> None:
    """Says how files with more than 8 bits are scaled, and which test images that cuts."""
    if levels == ALL_LEVELS:
        return
    _LOG.info("files with more than 8 bits: levels %d to %d become 0 to 255", *levels)
    of_test = extents[len(split.normal) :]
    cut = (of_test[:, 0] >= 0) & ((of_test[:, 0] < levels[0]) | (of_test[:, 1] > levels[1]))
    if cut.any():
        _LOG.warning(
            "%d of the %d test images, such as %s, exceed the levels %d to %d (the training "
            "images' range and half of it more): what exceeds them is clipped",
            cut.sum(),
            len(cut),
            split.listing.test[int(np.argmax(cut))],
            *levels,
        )
