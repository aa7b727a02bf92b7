"""Lists the clips of UCSD Ped1, and all that is wrong with their places and numbers."""

import dataclasses
import pathlib
import re

from vae_attn.data.layout import visible_entries


@dataclasses.dataclass(frozen=True)
class Clip:
    """One clip's frames in order, and its masks (empty where it has none)."""

    folder: pathlib.Path
    frames: list[pathlib.Path]
    masks: list[pathlib.Path]


def list_clips(root: pathlib.Path) -> tuple[list[Clip], list[Clip], list[str]]:
    """Training clips, test clips, and what is wrong with their folders."""
    problems: list[str] = []
    train = [Clip(d, numbered(d, ".tif", problems), []) for d in _clips(root, "Train", problems)]
    test = []
    for folder in _clips(root, "Test", problems):
        frames = numbered(folder, ".tif", problems)
        truth = folder.with_name(f"{folder.name}_gt")
        masks = numbered(truth, ".bmp", problems) if truth.is_dir() else []
        if truth.is_dir() and len(masks) != len(frames):
            problems.append(
                f"{truth}: {len(masks)} masks for the {len(frames)} frames of {folder.name}; "
                "restore the missing ones, or remove the folder to do without its pixel truth"
            )
        test.append(Clip(folder, frames, masks))
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

    A gap would shift every later frame's label.
    """
    entries = visible_entries(folder)
    paths = [e for e in entries if e.suffix.lower() == suffix and e.stem.isdecimal()]
    problems += [
        f"{entry}: not named NNN{suffix}; convert, move or remove it"
        for entry in entries
        if entry not in paths
    ]
    missing = {f"{i + 1:03d}" for i in range(len(paths))} - {path.stem for path in paths}
    problems += [
        f"{folder / name}{suffix}: missing, though later ones are there" for name in sorted(missing)
    ]
    if not paths:
        problems.append(f"{folder}: no {suffix} files; it holds 001{suffix}, 002{suffix}, ...")
    return paths
