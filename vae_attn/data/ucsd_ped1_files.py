"""Lists the clips of UCSD Ped1, and all that is wrong with their places and numbers."""

import dataclasses
import pathlib
import re

from vae_attn.data.layout import visible_entries

LABELS = "UCSDped1.m"

# Damaged in the archive that is published: clip and number of the frame.
KNOWN_DAMAGE = {("Test017", "142")}
_SHARE_LOST = 0.05  # of a clip's frames


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip's frames in order, and its masks (empty where it has none).

    A few frames may be missing: `frames` has their places, so that the others keep their numbers.
    """

    folder: pathlib.Path
    frames: list[pathlib.Path]
    masks: list[pathlib.Path]

    @property
    def may_lose(self) -> int:
        """How many frames may be missing or unreadable before the clip is taken for damaged."""
        return _may_lose(len(self.frames))

    def lengthen(self, count: int) -> None:
        """Adds places of last frames that have to be there, if these are few."""
        if len(self.frames) < count <= len(self.frames) + _may_lose(count):
            numbers = range(len(self.frames) + 1, count + 1)
            self.frames.extend(self.folder / f"{number:03d}.tif" for number in numbers)


def _may_lose(count: int) -> int:
    return max(1, int(_SHARE_LOST * count))


def list_clips(root: pathlib.Path) -> tuple[list[Clip], list[Clip], list[str]]:
    """Training clips, test clips, and what is wrong with their folders."""
    problems: list[str] = []
    train = [Clip(d, _frames(d, problems), []) for d in _clips(root, "Train", problems)]
    test = []
    for folder in _clips(root, "Test", problems):
        truth = folder.with_name(f"{folder.name}_gt")
        before = len(problems)
        masks = numbered(truth, ".bmp", problems) if truth.is_dir() else []
        gapless = len(problems) == before
        clip = Clip(folder, _frames(folder, problems), masks)
        if gapless:
            clip.lengthen(len(masks))
        if truth.is_dir() and len(masks) != len(clip.frames):
            problems.append(
                f"{truth}: {len(masks)} masks for the {len(clip.frames)} frames of {folder.name}; "
                "restore the missing ones, or remove the folder to do without its pixel truth"
            )
        test.append(clip)
    if len(test) == 1:
        problems.append(f"{test[0].folder}: the only test clip; validation takes one, give two")
    return train, test, problems


def _clips(root: pathlib.Path, split: str, problems: list[str]) -> list[pathlib.Path]:
    """The clip folders of one split, which are numbered from 001 without a gap."""
    entries = [entry for entry in visible_entries(root / split) if entry.is_dir()]
    folders = [entry for entry in entries if re.fullmatch(rf"{split}\d+", entry.name)]
    names = [folder.name for folder in folders]
    for entry in entries:
        if entry not in folders and entry.name.removesuffix("_gt") not in names:
            problems.append(f"{entry}: no clip {split}NNN and no masks of one; move it elsewhere")
    missing = sorted({f"{split}{i + 1:03d}" for i in range(len(names))} - set(names))
    problems += [f"{root / split / name}: no such clip, though later ones are" for name in missing]
    if not folders:
        problems.append(f"{root / split}: no clips; it holds {split}001, {split}002, ...")
    return folders


def numbered(folder: pathlib.Path, suffix: str, problems: list[str]) -> list[pathlib.Path]:
    """The files 001, 002, ... of a folder; appends to `problems` what else is or is not there.

    A gap would shift every later frame's mask.
    """
    paths = list(_by_number(folder, suffix, problems).values())
    missing = {f"{i + 1:03d}" for i in range(len(paths))} - {path.stem for path in paths}
    problems += [
        f"{folder / name}{suffix}: missing, though later ones are there" for name in sorted(missing)
    ]
    return paths


def _frames(folder: pathlib.Path, problems: list[str]) -> list[pathlib.Path]:
    """The places of the frames 001, 002, ... of a folder, of which a few may be missing."""
    found = _by_number(folder, ".tif", problems)
    count = max(found, default=0)
    missing = count - len(found)
    if missing > _may_lose(count):
        first = next(n for n in range(1, count) if n not in found)
        problems.append(
            f"{folder}: {missing} of {count} frames are missing, {first:03d}.tif the first of "
            "them; restore them"
        )
        return list(found.values())
    return [found.get(n, folder / f"{n:03d}.tif") for n in range(1, count + 1)]


def _by_number(folder: pathlib.Path, suffix: str, problems: list[str]) -> dict[int, pathlib.Path]:
    """The files of a folder by their numbers, in order; what else is there goes to `problems`."""
    found: dict[int, pathlib.Path] = {}
    for entry in visible_entries(folder):
        named = entry.suffix.lower() == suffix and re.fullmatch(r"[0-9]{3,9}", entry.stem)
        number = int(entry.stem) if named else 0
        if number and entry.stem == f"{number:03d}" and number not in found:
            found[number] = entry
        else:
            problems.append(f"{entry}: not named NNN{suffix}; convert, move or remove it")
    if not found:
        problems.append(f"{folder}: no {suffix} files; it holds 001{suffix}, 002{suffix}, ...")
    return dict(sorted(found.items()))
