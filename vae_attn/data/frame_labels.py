"""Which frames of a clip are anomalous: the `.m` file of UCSD Ped1, read as data, never run."""

import codecs
import contextlib
import pathlib
import re
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool

_FRAMES = re.compile(r"TestVideoFile\{\s*end\s*\+\s*1\s*\}\.gt_frame\s*=\s*\[(.*)\]\s*;?")
_NO_FRAMES = re.compile(r"(TestVideoFile\s*=\s*\{\s*\}\s*;?)?")
_RANGE = re.compile(r"([0-9]{1,9})(?::([0-9]{1,9}))?")
_SHOWN = 80  # characters of what is not understood


def read_frame_labels(
    path: pathlib.Path, frame_counts: Sequence[int]
) -> tuple[list[Bool[np.ndarray, "_"]], list[str]]:
    """Reads which frames are anomalous from a Ped1 `.m` file, without executing anything.

    Args:
      path: the file; the i-th statement `TestVideoFile{end+1}.gt_frame = [5:90, 140:200];` gives
        the anomalous frames of the i-th test clip, counted from 1, ends included.
      frame_counts: the number of frames of each clip.

    Returns:
      One array per clip, True on anomalous frames; and what is wrong with the file: all lines that
      cannot be understood, ranges beyond a clip, and a number of clips other than that of
      `frame_counts`.
    """
    try:
        lines = _read(path).splitlines()
    except OSError as error:
        return [], [f"{path}: cannot be read ({error.strerror}); it lists the anomalous frames"]
    labels: list[np.ndarray] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        statement = _statement(line)
        frames = _FRAMES.fullmatch(statement)
        if frames:
            count = frame_counts[len(labels)] if len(labels) < len(frame_counts) else None
            label, wrong = _parse_ranges(frames[1], count)
            labels.append(label)
            problems += [f"{path}, line {number}: {what}" for what in wrong]
        elif not _NO_FRAMES.fullmatch(statement):
            problems.append(
                f"{path}, line {number}: {statement[:_SHOWN]!r} is not understood; write "
                "TestVideoFile{end+1}.gt_frame = [first:last];"
            )
    if len(labels) != len(frame_counts):
        problems.append(
            f"{path}: lists {len(labels)} test clips, but there are {len(frame_counts)}; "
            "restore the file or the clips"
        )
    return labels, problems


def last_frames(path: pathlib.Path) -> list[int]:
    """The last anomalous frame of each clip that the file has, 0 where there is none.

    Nothing is checked, and of a file that cannot be read nothing is returned.
    """
    with contextlib.suppress(OSError):
        statements = (_statement(line) for line in _read(path).splitlines())
        found = filter(None, map(_FRAMES.fullmatch, statements))
        return [max(map(int, re.findall("[0-9]{1,9}", ranges[1])), default=0) for ranges in found]
    return []


def _read(path: pathlib.Path) -> str:
    """The file's text, without the mark that some editors put at its start."""
    content = path.read_bytes()
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if wide else "utf-8-sig", errors="replace")


def _statement(line: str) -> str:
    return line.split("%")[0].strip()


def _parse_ranges(text: str, count: int | None) -> tuple[np.ndarray, list[str]]:
    """`5:90, 140:200` as an array of `count` frames; None stands for a missing clip."""
    label = np.zeros(count or 0, bool)
    problems = []
    for part in re.split(r"[,;\s]+", re.sub(r"\s*:\s*", ":", text.strip())):
        if not part:
            continue
        found = _RANGE.fullmatch(part)
        if not found:
            problems.append(f"{part[:_SHOWN]!r} is no range; write first:last")
            continue
        first, last = int(found[1]), int(found[2] or found[1])
        if not 1 <= first <= last:
            problems.append(f"the range {part} has to count up from 1 or later")
        elif count is not None and last > count:
            problems.append(f"the range {part} goes beyond the clip's {count} frames")
        else:
            label[first - 1 : last] = count is not None
    return label, problems
