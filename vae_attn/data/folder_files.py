"""Lists the files of a folder in the MVTec-AD layout, and all that is wrong with their places."""

import dataclasses
import os
import pathlib

from vae_attn.data import images
from vae_attn.data.layout import visible_entries

NORMAL = "good"


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a data set: a mask a defective test image, or none at all (`has_truth`)."""

    train: list[pathlib.Path]
    test: list[pathlib.Path]
    classes: list[str]
    masks: dict[pathlib.Path, pathlib.Path]
    has_truth: bool


def list_files(root: pathlib.Path) -> tuple[Listing, list[str]]:
    """Walks the layout; returns the files and what is wrong with their places and names."""
    problems: list[str] = []
    train = _images_in(root / "train" / NORMAL, problems, optional=False)
    if len(train) == 1:
        problems.append(f"{train[0]}: the only training image; give at least two")
    if (root / "train").is_dir():
        problems += [
            f"{entry}: training takes normal images only; move it under {root / 'test'}"
            if entry.is_dir()
            else f"{entry}: lies outside train/{NORMAL}; move it there"
            for entry in visible_entries(root / "train")
            if entry.name != NORMAL
        ]
    test: list[pathlib.Path] = []
    classes = [NORMAL]
    if not (root / "test").is_dir():
        problems.append(f"{root / 'test'}: no such folder; it holds the images to explain")
    else:
        entries = visible_entries(root / "test")
        folders = [entry for entry in entries if entry.is_dir()]
        problems += [
            f"{entry}: lies outside test/{NORMAL} and test/<defect>; move it into one of them"
            for entry in entries
            if entry not in folders
        ]
        if not folders:
            problems.append(f"{root / 'test'}: empty; it holds test/{NORMAL} and test/<defect>")
        classes += [folder.name for folder in folders if folder.name != NORMAL]
        test = [path for name in classes for path in _test_images(root / "test" / name, problems)]
    truth = root / "ground_truth"
    has_truth = truth.is_dir()
    if os.path.lexists(truth) and not has_truth:
        problems.append(
            f"{truth}: is no folder; make it one, of masks, or remove it to score images only"
        )
    masks = _match_masks(root, test, classes, problems) if has_truth else {}
    return Listing(train, test, classes, masks, has_truth), problems


def _test_images(folder: pathlib.Path, problems: list[str]) -> list[pathlib.Path]:
    """The images of one test class; only "good" may be absent."""
    if folder.name == NORMAL and not folder.is_dir():
        return []
    paths = _images_in(folder, problems, optional=True)
    first: dict[str, pathlib.Path] = {}
    for path in paths:
        if first.setdefault(path.stem, path) != path:
            problems.append(f"{path}: has the name of {first[path.stem]}; rename one of them")
    return paths


def _images_in(folder: pathlib.Path, problems: list[str], *, optional: bool) -> list[pathlib.Path]:
    """The images of a folder, which has to be there and hold nothing else.

    `optional` tells whether an empty one may be removed.
    """
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
        remedy = "put images into it or remove it" if optional else "put images into it"
        problems.append(f"{folder}: empty; {remedy}")
    return paths


def _match_masks(
    root: pathlib.Path, test: list[pathlib.Path], classes: list[str], problems: list[str]
) -> dict[pathlib.Path, pathlib.Path]:
    """Finds each defective image's mask; tells of masks missing, doubled or left over."""
    truth = root / "ground_truth"
    matched: dict[pathlib.Path, pathlib.Path] = {}
    unmasked: list[pathlib.Path] = []
    unclaimed: list[pathlib.Path] = []
    for name in classes[1:]:
        pictures = [path for path in test if path.parent.name == name]
        if not (truth / name).is_dir():
            problems.append(
                f"{truth / name}: no such folder, but {root / 'test' / name} holds "
                f"{len(pictures)} images; add their masks, or remove ground_truth to do without"
            )
            unmasked += pictures
            continue
        left = _images_in(truth / name, problems, optional=not pictures)
        for path in pictures:
            found = [mask for mask in left if mask.stem in (path.stem, f"{path.stem}_mask")]
            left = [mask for mask in left if mask not in found]
            if not found:
                unmasked.append(path)
                problems.append(f"{path}: has no mask; add {truth / name / path.stem}_mask.png")
            elif len(found) > 1:
                problems.append(f"{found[1]}: a second mask of {path}; remove one of the two")
            else:
                matched[path] = found[0]
        unclaimed += left
    problems += [_left_over(mask, unmasked, root) for mask in unclaimed]
    for entry in visible_entries(truth):
        if entry.name in classes[1:]:
            continue
        if entry.name == NORMAL and entry.is_dir() and not visible_entries(entry):
            continue
        if entry.name == NORMAL:
            problems.append(f"{entry}: normal images have no masks; remove it")
        elif not entry.is_dir():
            problems.append(
                f"{entry}: lies outside ground_truth/<defect>; move it into its defect's folder"
            )
        else:
            problems.append(f"{entry}: belongs to no folder test/{entry.name}; remove or rename it")
    return matched


def _left_over(mask: pathlib.Path, unmasked: list[pathlib.Path], root: pathlib.Path) -> str:
    """A mask without an image, and what else it may be the mask of."""
    folder, stem = mask.parent.name, mask.stem.removesuffix("_mask")
    owner = next((path for path in unmasked if path.stem == stem), None)
    hint = "add its image or remove the mask"
    if owner is not None:
        hint = (
            f"if it is the mask of {owner}, move it to {root / 'ground_truth' / owner.parent.name}"
        )
    return f"{mask}: belongs to no image of {root / 'test' / folder}; {hint}"
