"""Lists the images of a folder: in the MVTec-AD layout, with all that is wrong, or of any."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

from vae_attn.data import image_files
from vae_attn.data.layout import visible_entries

NORMAL = "good"
_NAMED = 5  # files in a list of those skipped


@dataclasses.dataclass(frozen=True)
class Listing:
    """The files of a data set.

    Attributes:
      train: normal images.
      validation: normal images held out by the data set itself; empty where it does not.
      test: images to explain, normal ones first.
      classes: the normal class and the defects that `test` has folders of.
      masks: the files of each defective image's mask, whose union it is.
      has_truth: whether every defective image has a mask; none has one otherwise.
    """

    train: list[pathlib.Path]
    validation: list[pathlib.Path]
    test: list[pathlib.Path]
    classes: list[str]
    masks: dict[pathlib.Path, tuple[pathlib.Path, ...]]
    has_truth: bool

    @property
    def missing(self) -> list[str]:
        """What cannot be scored, one sentence each."""
        defective = any(path.parent.name != NORMAL for path in self.test)
        if not self.test:
            return [
                f"no image is scored, as there are no test images: add test/{NORMAL} and "
                "test/<defect>"
            ]
        if not defective:
            return [
                "of the test images only the false alarms are counted, as none of them is "
                "defective: add test/<defect> for all other scores"
            ]
        found = []
        if all(path.parent.name != NORMAL for path in self.test):
            found.append(
                "whole images are not scored and false alarms not counted, as no test image is "
                f"normal: add test/{NORMAL}"
            )
        if not self.has_truth:
            found.append("pixels are not scored, as there are no masks: add ground_truth/<defect>")
        return found


def list_files(root: pathlib.Path) -> tuple[Listing, list[str]]:
    """Walks the layout; returns the files and what is wrong with their places and names."""
    problems: list[str] = []
    train = _images_in(root / "train" / NORMAL, problems, optional=False)
    held_out = root / "validation" / NORMAL
    validation = _images_in(held_out, problems, optional=True) if held_out.is_dir() else []
    if len(train) == 1 and not validation:
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
    if os.path.lexists(root / "test") and not (root / "test").is_dir():
        problems.append(f"{root / 'test'}: is no folder; it holds the images to explain")
    elif (root / "test").is_dir():
        entries = visible_entries(root / "test")
        folders = [entry for entry in entries if entry.is_dir()]
        problems += [
            f"{entry}: lies outside test/{NORMAL} and test/<defect>; move it into one of them"
            for entry in entries
            if entry not in folders
        ]
        classes += [folder.name for folder in folders if folder.name != NORMAL]
        test = [path for name in classes for path in _test_images(root / "test" / name, problems)]
    truth = root / "ground_truth"
    has_truth = truth.is_dir()
    if os.path.lexists(truth) and not has_truth:
        problems.append(
            f"{truth}: is no folder; make it one, of masks, or remove it to score images only"
        )
    masks = _match_masks(root, test, classes, problems) if has_truth else {}
    return Listing(train, validation, test, classes, masks, has_truth), problems


def images_below(
    folder: pathlib.Path, seen: set[pathlib.Path] | None = None
) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """The files in a folder and its folders, however they are arranged.

    Args:
      folder: an existing folder.
      seen: folders not to enter again, as links may go round; those entered are added.

    Returns:
      The images, by their endings, and the files that are skipped because they are none.

    Raises:
      UserError: a folder cannot be listed.
    """
    seen = set() if seen is None else seen
    found: list[pathlib.Path] = []
    skipped: list[pathlib.Path] = []
    if (real := folder.resolve()) in seen:
        return found, skipped
    seen.add(real)
    for entry in visible_entries(folder):
        if entry.is_dir():
            below = images_below(entry, seen)
            found += below[0]
            skipped += below[1]
        else:
            (found if entry.suffix.lower() in image_files.EXTENSIONS else skipped).append(entry)
    return found, skipped


def skipped_note(skipped: Sequence[pathlib.Path]) -> str:
    """One sentence that names the files that are skipped, the first few of many."""
    names = ", ".join(path.name for path in skipped[:_NAMED])
    more = ", ..." if len(skipped) > _NAMED else ""
    what = (
        "1 file is no image and was"
        if len(skipped) == 1
        else (f"{len(skipped)} files are no images and were")
    )
    return f"{what} skipped: {names}{more} (images are {image_files.KINDS} files)"


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


def _images_in(
    folder: pathlib.Path, problems: list[str], *, optional: bool, folders: bool = False
) -> list[pathlib.Path]:
    """The images of a folder, which has to be there and hold nothing else.

    `optional` says whether an empty one may be removed, `folders` whether others may be in it.
    """
    if not folder.is_dir():
        problems.append(f"{folder}: no such folder")
        return []
    entries = [e for e in visible_entries(folder) if not (folders and e.is_dir())]
    paths = [e for e in entries if e.is_file() and e.suffix.lower() in image_files.EXTENSIONS]
    problems += [
        f"{entry}: {'a folder' if entry.is_dir() else f'no {image_files.KINDS} file'} where "
        "images are expected; convert, move or remove it"
        for entry in entries
        if entry not in paths
    ]
    if not entries:
        remedy = "put images into it or remove it" if optional else "put images into it"
        problems.append(f"{folder}: empty; {remedy}")
    return paths


class _Mask(NamedTuple):
    """A file with an image's mask, or a folder of files whose union is its mask."""

    entry: pathlib.Path
    files: tuple[pathlib.Path, ...]

    @property
    def stem(self) -> str:
        """The name of the image, perhaps with `_mask` after it."""
        return self.entry.name if self.entry.is_dir() else self.entry.stem


def _masks_in(folder: pathlib.Path, problems: list[str], *, optional: bool) -> list[_Mask]:
    """The masks of one defect, as files or, as in MVTec LOCO, each in a folder of its own."""
    folders = [entry for entry in visible_entries(folder) if entry.is_dir()]
    masks = [_Mask(path, tuple(_images_in(path, problems, optional=True))) for path in folders]
    if folders and len(folders) == len(visible_entries(folder)):
        return masks
    files = _images_in(folder, problems, optional=optional, folders=True)
    return sorted([*masks, *(_Mask(path, (path,)) for path in files)])


def _match_masks(
    root: pathlib.Path, test: list[pathlib.Path], classes: list[str], problems: list[str]
) -> dict[pathlib.Path, tuple[pathlib.Path, ...]]:
    """Finds each defective image's mask; reports masks missing, doubled or left over."""
    truth = root / "ground_truth"
    matched: dict[pathlib.Path, tuple[pathlib.Path, ...]] = {}
    unmasked: list[pathlib.Path] = []
    unclaimed: list[_Mask] = []
    for name in classes[1:]:
        pictures = [path for path in test if path.parent.name == name]
        if not (truth / name).is_dir():
            problems.append(
                f"{truth / name}: no such folder, but {root / 'test' / name} holds "
                f"{len(pictures)} images; add their masks, or remove ground_truth to do without"
            )
            unmasked += pictures
            continue
        left = _masks_in(truth / name, problems, optional=not pictures)
        for path in pictures:
            found = [mask for mask in left if mask.stem in (path.stem, f"{path.stem}_mask")]
            left = [mask for mask in left if mask not in found]
            if not found:
                unmasked.append(path)
                problems.append(f"{path}: has no mask; add {truth / name / path.stem}_mask.png")
            elif len(found) > 1:
                problems.append(
                    f"{found[1].entry}: a second mask of {path}; remove one of the two, or put "
                    f"both into the folder {truth / name / path.stem}"
                )
            else:
                matched[path] = found[0].files
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


def _left_over(mask: _Mask, unmasked: list[pathlib.Path], root: pathlib.Path) -> str:
    """A mask without an image, and what else it may be the mask of."""
    folder, stem = mask.entry.parent.name, mask.stem.removesuffix("_mask")
    owner = next((path for path in unmasked if path.stem == stem), None)
    hint = "add its image or remove the mask"
    if owner is not None:
        hint = (
            f"if it is the mask of {owner}, move it to {root / 'ground_truth' / owner.parent.name}"
        )
    return f"{mask.entry}: belongs to no image of {root / 'test' / folder}; {hint}"
