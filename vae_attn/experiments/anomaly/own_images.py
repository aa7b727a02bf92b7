"""Explains image files of the user's by a trained model: maps, latents and a decision for each."""

import collections
import glob
import json
import logging
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import BinaryIO, NamedTuple

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vae_attn import whole_files
from vae_attn.data import images as images_lib
from vae_attn.data.folder_files import images_below, skipped_note
from vae_attn.data.image_files import EXTENSIONS
from vae_attn.errors import UserError, shown
from vae_attn.experiments.anomaly import map_figures
from vae_attn.experiments.anomaly.calibration import Calibration
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.experiments.anomaly.tiles import PLACE
from vae_attn.experiments.maps import Deviations, ExactMaps
from vae_attn.progress import Progress
from vae_attn.reporting import figures
from vae_attn.workdir import DataRecord

FOLDER = "explained"  # in the workdir
RESULTS = "results.jsonl"  # in that folder

_LATENTS_SHOWN = 8
_TILE = 160  # side of one picture in the row of latents, pixels
_STRIP_PIXELS = 2**20  # of an overlay painted at once: a photograph's would need gigabytes
_LOG = logging.getLogger("vae_attn")


def find(pattern: str) -> list[pathlib.Path]:
    """The files that `--images` names, sorted; those skipped in folders are logged.

    Args:
      pattern: a file, a folder (all images in it and in its folders) or a glob pattern of files and
        folders, in which `**` stands for any folders. What is named as a file is taken whatever its
        ending.

    Raises:
      UserError: if there is none.
    """
    try:
        path = pathlib.Path(pattern).expanduser()
        exists = bool(pattern) and path.exists()  # first: a name may hold a bracket
        matched = [path] if exists else map(pathlib.Path, glob.glob(str(path), recursive=True))
        files, skipped, seen = [], [], set()
        for one in sorted(matched) if pattern else ():
            found, others = images_below(one, seen) if one.is_dir() else ([one], [])
            files += found
            skipped += others
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError) as error:  # no name of a file, no such home folder
        reason = (isinstance(error, OSError) and error.strerror) or error
        raise UserError(
            f"--images={shown(pattern)} cannot be looked up ({reason}); give a file, a folder or a "
            "quoted pattern."
        ) from error
    if not files:
        raise UserError(
            f"--images={shown(pattern)} matches no image: give a file, a folder with images "
            f"({', '.join(EXTENSIONS)}) or a pattern such as 'photos/*.png', quoted."
        )
    if skipped:
        _LOG.warning("%s", skipped_note(skipped))
    return list(dict.fromkeys(files))


def explain(
    explainer: Explainer,
    paths: Sequence[pathlib.Path],
    workdir: pathlib.Path,
    *,
    tiles: str | None = None,
) -> pathlib.Path:
    """Writes what the model makes of each image, and `explained/results.jsonl` of all.

    The files of an image, in `explained/` as the images lie below the folder that they share:
    `<stem>_overlay.png`, the map over the image in its own size; `<stem>_map.npy`, the calibrated
    map in the model's size, and `<stem>_map.png`, the same in 16 bits, 0 to `map_scale`;
    `<stem>_latents.png`, the most deviating latents with the signed maps that say why, and
    `<stem>_latent_maps.npy`, those maps. In a folder where two images share a stem, whole names
    stand in its place.

    Args:
      explainer: of the trained model.
      paths: of the images; they are resized and converted as a data set's are.
      workdir: of the run.
      tiles: `place` or `free` (`Explainer.tiled`) for images larger than the model's, whose maps
        then have the image's own size; the latents are those of the tile of the highest score.

    Returns:
      Path of `results.jsonl`.

    Raises:
      UserError: naming the files that could not be read, when all others are done.
    """
    folder = workdir / FOLDER
    writer = _Writer(explainer, folder, _names(paths), DataRecord.read(workdir).levels, tiles)
    rows, problems = [], []
    with Progress("explaining", total=len(paths)) as progress:
        for start in range(0, len(paths), explainer.batch_size):
            batch = paths[start : start + explainer.batch_size]
            done, unreadable = writer.explain(batch)
            rows += done
            problems += unreadable
            progress.add(len(batch))
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
    _write(folder / RESULTS, lambda file: file.write(text.encode()))
    threshold = explainer.calibration.images
    if tiles is not None or threshold.value is None:
        why = threshold.missing or _of_tiles(tiles)
        _LOG.warning("%s, so no image is called abnormal or not", why)
        _LOG.info("%d images explained: %s", len(rows), folder / RESULTS)
    else:
        abnormal = sum(row["abnormal"] for row in rows)
        _LOG.info("%d of %d images abnormal: %s", abnormal, len(rows), folder / RESULTS)
        _LOG.info("an image is abnormal above %s", threshold.described())
    if problems:
        heading = f"{len(problems)} of {len(paths)} images could not be explained, the others were:"
        raise UserError("\n  ".join([heading, *problems]))
    return folder / RESULTS


def _names(paths: Sequence[pathlib.Path]) -> dict[pathlib.Path, str]:
    """Where each image's files go, below the folder of results and without what is appended."""
    absolute = {path: pathlib.Path(os.path.abspath(path)) for path in paths}
    root = os.path.commonpath([path.parent for path in absolute.values()])
    stems = collections.Counter((path.parent, path.stem) for path in absolute.values())
    shared = {parent for (parent, _), count in stems.items() if count > 1}
    return {
        path: os.path.join(
            os.path.relpath(whole.parent, root) if whole.parent != pathlib.Path(root) else "",
            whole.name if whole.parent in shared else whole.stem,
        )
        for path, whole in absolute.items()
    }


class _Writer:
    """Explains a batch of files at a time."""

    def __init__(
        self,
        explainer: Explainer,
        folder: pathlib.Path,
        names: dict[pathlib.Path, str],
        levels: tuple[int, int],
        tiles: str | None,
    ) -> None:
        self._explainer = explainer
        self._tiles = tiles
        self._levels = levels  # of deep files, as the training images had them
        self._folder = folder
        self._names = names
        # What gets the full colour: the same for all images, so that normal ones are calm.
        threshold = explainer.calibration.image_threshold
        self._scale = 2 * threshold if threshold is not None and threshold > 0 else 1.0

    def explain(self, paths: Sequence[pathlib.Path]) -> tuple[list[dict], list[str]]:
        """Writes the images' files; the rows of those done, and what was wrong with the rest."""
        if self._tiles is not None:
            return self._explain_tiled(paths)
        explainer = self._explainer
        side, _, channels = explainer.model.image_shape

        def read(path: pathlib.Path) -> np.ndarray:
            options = {"channels": channels, "levels": self._levels}
            return images_lib.read_resized_image(path, side, **options)[0]

        found, problems = images_lib.read_many(read, paths)
        kept = [path for path, image in zip(paths, found, strict=True) if image is not None]
        if not kept:
            return [], problems
        images = np.stack([image for image in found if image is not None])
        counterparts = explainer.counterparts(images)
        maps, scores = explainer(images, counterparts)
        latents = self._latents(images, counterparts)
        place = {path: n for n, path in enumerate(kept)}

        def write(path: pathlib.Path) -> dict:
            n = place[path]
            # Again: a batch of photographs would fill memory.
            original = images_lib.read_image(path, levels=self._levels)
            return self._write_one(path, original, maps[n], float(scores[n]), latents[n])

        rows, unwritable = images_lib.read_many(write, kept)
        return [row for row in rows if row is not None], problems + unwritable

    def _explain_tiled(self, paths: Sequence[pathlib.Path]) -> tuple[list[dict], list[str]]:
        """As `explain`, one image at a time, for the memory of large ones."""
        rows, problems = [], []
        for path in paths:
            try:
                rows.append(self._explain_one_tiled(path))
            except UserError as error:
                reason = str(error)
                problems.append(reason if str(path) in reason else f"{path}: {reason}")
        return rows, problems

    def _explain_one_tiled(self, path: pathlib.Path) -> dict:
        explainer = self._explainer
        original = images_lib.read_image(path, levels=self._levels)
        found = explainer.tiled(original, calibrated=self._tiles)
        side = explainer.model.image_shape[0]
        top, left = found.corners[np.argmax(found.scores)]
        tile = original[None, top : top + side, left : left + side]
        tile = images_lib.fit_images(tile, explainer.model.image_shape)
        (latents,) = self._latents(tile, explainer.counterparts(tile))
        row = self._write_one(path, original, found.map, found.score, latents)
        threshold = explainer.calibration.image_threshold if self._tiles == PLACE else None
        why = explainer.calibration.images.missing or _of_tiles(self._tiles)
        above = None if threshold is None else found.corners[found.scores > threshold].tolist()
        decision = {"threshold": threshold, "abnormal": None, "not_decided": why}
        if self._tiles != PLACE:
            decision |= {"pixel_threshold": None, "false_alarm_rate": None}
            decision |= {"false_alarm_rate_interval": None}
        tiles = {"side": side, "count": len(found.scores), "calibrated": self._tiles}
        tiles |= {"above_threshold": above, "explained": [int(top), int(left)]}
        return row | decision | {"tiles": tiles}

    def _latents(
        self,
        images: UInt8[np.ndarray, "n h w c"],
        counterparts: Float[np.ndarray, "n h w c"],
    ) -> "list[_Latents]":
        """Of each image, the latents that deviate most and their signed maps."""
        found = self._explainer.deviating_latents(images, count=_LATENTS_SHOWN)
        exact = self._explainer.exact_maps(images, counterparts, found.latents)
        return [
            _Latents(
                rows=_latent_rows(found, exact, n),
                maps=exact.maps[n],
                picture=_latents_row(images, counterparts, found, exact, n),
            )
            for n in range(len(images))
        ]

    def _write_one(
        self,
        path: pathlib.Path,
        original: UInt8[np.ndarray, "height width channels"],
        map_: Float[np.ndarray, "h w"],
        score: float,
        latents: "_Latents",
    ) -> dict:
        """Writes an image's files; its row."""
        # Never cut, and for all but the most abnormal images the same.
        map_scale = max(self._scale, float(map_.max()))
        grey = np.rint(np.clip(map_ / map_scale, 0, 1) * 65535).astype(np.uint16)
        pictures = {"overlay": _overlay(original, map_, self._scale), "map": grey}
        pictures["latents"] = latents.picture
        arrays = {"map": map_, "latent_maps": latents.maps}
        name = self._names[path]
        files = {kind: f"{name}_{kind}.png" for kind in pictures}
        (self._folder / name).parent.mkdir(parents=True, exist_ok=True)
        for kind, pixels in pictures.items():
            picture = Image.fromarray(pixels)
            _write(self._folder / files[kind], lambda file, p=picture: p.save(file, format="PNG"))
        for kind, values in arrays.items():
            files[f"{kind}_values"] = f"{name}_{kind}.npy"
            _write(self._folder / files[f"{kind}_values"], lambda file, v=values: np.save(file, v))
        calibration = self._explainer.calibration
        decided = calibration.image_threshold
        return {
            "image": str(path),
            "score": score,
            "threshold": decided,
            "abnormal": None if decided is None else bool(score > decided),
            **_sureness(calibration),
            "pixel_threshold": calibration.threshold,
            "pixel_threshold_share": calibration.pixels.share,
            "map_scale": map_scale,
            "latents": latents.rows,
            "files": files,
        }


class _Latents(NamedTuple):
    """What is shown of an image's latents."""

    rows: list[dict]
    maps: Float[np.ndarray, "count h w"]
    picture: UInt8[np.ndarray, "height width 3"]


def _of_tiles(tiles: str) -> str:
    """Why an image in tiles gets no decision."""
    if tiles == PLACE:
        return "a threshold keeps its rate of false alarms for a tile, and an image has many"
    return "thresholds are of maps calibrated per place, and not free of it"


def _sureness(calibration: Calibration) -> dict:
    """What is known of the rate of false alarms, or why nothing is decided."""
    found = calibration.images
    known = {"false_alarm_rate": found.rate, "held_out_normal_images": found.images}
    if found.value is None:
        return known | {"not_decided": found.missing}
    if found.caveat:
        known |= {"false_alarm_rate_caveat": found.caveat}
    return known | {"false_alarm_rate_interval": [found.low, found.high]}


def _overlay(
    image: UInt8[np.ndarray, "height width channels"], map_: Float[np.ndarray, "h w"], scale: float
) -> UInt8[np.ndarray, "height width 3"]:
    """`figures.overlay` in the image's own size, of which the map takes over the aspect."""
    height, width = image.shape[:2]
    resized = Image.fromarray(map_).resize((width, height), Image.Resampling.BILINEAR)
    resized = np.asarray(resized)
    painted = np.empty((height, width, 3), np.uint8)
    step = max(1, _STRIP_PIXELS // width)
    for start in range(0, height, step):
        rows = slice(start, start + step)
        part = figures.overlay(image[None, rows], resized[None, rows], scale)[0]
        painted[rows] = np.rint(255 * part)
    return painted


def _latent_rows(found: Deviations, exact: ExactMaps, n: int) -> list[dict]:
    """What the results say of an image's latents."""
    columns = {
        "latent": exact.latents[n],
        "deviation": found.deviations[n],
        "z": exact.z[n],
        "z_counterpart": exact.z_counterpart[n],
        "map_sum": exact.sums[n],
    }
    return [
        dict(zip(columns, row, strict=True))
        for row in zip(*(of.tolist() for of in columns.values()), strict=True)
    ]


def _latents_row(
    images: UInt8[np.ndarray, "n h w c"],
    counterparts: Float[np.ndarray, "n h w c"],
    found: Deviations,
    exact: ExactMaps,
    n: int,
) -> UInt8[np.ndarray, "height width 3"]:
    """The image as the model sees it, its counterpart, and the latents' maps on one scale."""
    maps, image = exact.maps[n], images[n]
    overlays = figures.signed_overlay(
        np.broadcast_to(image, (len(maps), *image.shape)), maps, map_figures.quantile(np.abs(maps))
    )
    pair = np.broadcast_to(np.stack([image / 255, counterparts[n]]), (2, *overlays.shape[1:]))
    tiles = np.rint(255 * np.clip(np.concatenate([pair, overlays]), 0, 1)).astype(np.uint8)
    captions = ["input", "counterpart", *map_figures.latent_captions(found, exact, n)]
    sized = [np.asarray(Image.fromarray(tile).resize((_TILE, _TILE))) for tile in tiles]
    return np.asarray(figures.tiled(np.stack(sized)[None], captions=captions))


def _write(path: pathlib.Path, save: Callable[[BinaryIO], object]) -> None:
    """Writes a file whole or not at all."""
    with whole_files.writing(path) as temporary, temporary.open("wb") as file:
        save(file)
