"""Any folder of images in the MVTec-AD layout: one's own data, pixel masks optional.

Everything is checked before training, and all that is wrong is told at once.
"""

import dataclasses
import os
import pathlib

import numpy as np
from jaxtyping import Bool, UInt8

from vae_attn.data import cache, images
from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.layout import (
    check_settings,
    data_name,
    held_out_count,
    problems_error,
    visible_entries,
)
from vae_attn.errors import UserError

LAYOUT = (
    "train/good/*, test/good/*, test/<defect>/* and, where pixel masks are known, "
    "ground_truth/<defect>/<name of the image>_mask.png; images are png, jpg, bmp or tif"
)

_NORMAL = "good"


@dataclasses.dataclass(frozen=True)
class _Listing:
    """The files of a data set: a mask a defective test image, or none at all (`has_truth`)."""

    train: list[pathlib.Path]
    test: list[pathlib.Path]
    classes: list[str]
    masks: dict[pathlib.Path, pathlib.Path]
    has_truth: bool


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
    listing, problems = _list_files(root)
    arrays = _arrays(
        root,
        listing,
        problems,
        image_size=image_size,
        channels=channels,
        cache_dir=cache_dir,
    )
    n_train = len(listing.train)
    order = np.random.default_rng(seed).permutation(n_train)
    n_validation = held_out_count(n_train, validation_fraction)
    pictures = arrays["images"]
    return AnomalyData(
        name=data_name(root.resolve().name, root, root.resolve().parent),
        train=np.asarray(pictures[np.sort(order[n_validation:])]),
        validation=np.asarray(pictures[np.sort(order[:n_validation])]),
        test=_labelled(listing, pictures[n_train:], arrays.get("masks")),
    )


def _labelled(
    listing: _Listing,
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
    listing: _Listing,
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
    listing: _Listing, problems: list[str], *, image_size: int, channels: int | None
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
                f"defect or move the image to test/{_NORMAL}"
            )
    if problems:
        return {}
    deepest = max(picture.shape[-1] for picture, _ in pictures)
    stacked = {"images": np.stack([images.to_channels(p, deepest) for p, _ in pictures])}
    if masks:
        stacked["masks"] = np.stack([mask for mask, _ in masks])
    return stacked


def _list_files(root: pathlib.Path) -> tuple[_Listing, list[str]]:
    """Walks the layout; returns the files and what is wrong with their places and names."""
    problems: list[str] = []
    train = _images_in(root / "train" / _NORMAL, problems)
    if len(train) == 1:
        problems.append(f"{train[0]}: the only training image; give at least two")
    if (root / "train").is_dir():
        problems += [
            f"{folder}: training takes normal images only; move it under {root / 'test'}"
            for folder in visible_entries(root / "train")
            if folder.name != _NORMAL
        ]
    test: list[pathlib.Path] = []
    classes = [_NORMAL]
    if not (root / "test").is_dir():
        problems.append(f"{root / 'test'}: no such folder; it holds the images to explain")
    else:
        entries = visible_entries(root / "test")
        folders = [entry for entry in entries if entry.is_dir()]
        problems += [
            f"{entry}: lies outside test/{_NORMAL} and test/<defect>; move it into one of them"
            for entry in entries
            if entry not in folders
        ]
        if not folders:
            problems.append(f"{root / 'test'}: empty; it holds test/{_NORMAL} and test/<defect>")
        classes += [folder.name for folder in folders if folder.name != _NORMAL]
        test = [path for name in classes for path in _test_images(root / "test" / name, problems)]
    has_truth = (root / "ground_truth").is_dir()
    masks = _match_masks(root, test, classes, problems) if has_truth else {}
    return _Listing(train, test, classes, masks, has_truth), problems


def _test_images(folder: pathlib.Path, problems: list[str]) -> list[pathlib.Path]:
    """The images of one test class; only "good" may be absent."""
    if folder.name == _NORMAL and not folder.is_dir():
        return []
    paths = _images_in(folder, problems)
    first: dict[str, pathlib.Path] = {}
    for path in paths:
        if first.setdefault(path.stem, path) != path:
            problems.append(f"{path}: has the name of {first[path.stem]}; rename one of them")
    return paths


def _images_in(folder: pathlib.Path, problems: list[str]) -> list[pathlib.Path]:
    """The images of a folder, which has to be there and hold nothing else."""
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder")
        return []
    entries = visible_entries(folder)
    paths = [e for e in entries if e.is_file() and e.suffix.lower() in images.EXTENSIONS]
    problems += [
        f"{entry}: {'a folder' if entry.is_dir() else 'no png, jpg, bmp or tif file'} where "
        "images are expected; convert, move or remove it"
        for entry in entries
        if entry not in paths
    ]
    if not entries:
        problems.append(f"{folder}: empty; put images into it or remove it")
    return paths


def _match_masks(
    root: pathlib.Path, test: list[pathlib.Path], classes: list[str], problems: list[str]
) -> dict[pathlib.Path, pathlib.Path]:
    """Finds each defective image's mask; tells of masks missing, doubled or left over."""
    truth = root / "ground_truth"
    matched: dict[pathlib.Path, pathlib.Path] = {}
    for name in classes[1:]:
        pictures = [path for path in test if path.parent.name == name]
        if not (truth / name).is_dir():
            problems.append(
                f"{truth / name}: no such folder, but {root / 'test' / name} holds "
                f"{len(pictures)} images; add their masks, or remove ground_truth to do without"
            )
            continue
        left = _images_in(truth / name, problems)
        for path in pictures:
            found = [mask for mask in left if mask.stem in (path.stem, f"{path.stem}_mask")]
            left = [mask for mask in left if mask not in found]
            if not found:
                problems.append(f"{path}: has no mask; add {truth / name / path.stem}_mask.png")
            elif len(found) > 1:
                problems.append(f"{found[1]}: a second mask of {path}; remove one of the two")
            else:
                matched[path] = found[0]
        problems += [_left_over(mask, test, root) for mask in left]
    for entry in visible_entries(truth):
        if entry.name in classes[1:]:
            continue
        if entry.name == _NORMAL and entry.is_dir() and not visible_entries(entry):
            continue
        if entry.name == _NORMAL:
            problems.append(f"{entry}: normal images have no masks; remove it")
        else:
            problems.append(f"{entry}: belongs to no folder test/{entry.name}; remove or rename it")
    return matched


def _left_over(mask: pathlib.Path, test: list[pathlib.Path], root: pathlib.Path) -> str:
    stem = mask.stem.removesuffix("_mask")
    elsewhere = [path for path in test if path.stem == stem and path.parent.name != _NORMAL]
    hint = "remove it"
    if elsewhere:
        owner = elsewhere[0]
        hint = (
            f"if it is the mask of {owner}, move it to {root / 'ground_truth' / owner.parent.name}"
        )
    return f"{mask}: belongs to no image of {root / 'test' / mask.parent.name}; {hint}"
