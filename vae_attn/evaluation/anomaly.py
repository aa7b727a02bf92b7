"""Scores a one-class VAE: which images are abnormal, and where."""

import functools
import json
import logging
import pathlib
from collections.abc import Callable, Iterator

import ml_collections
import numpy as np
from jaxtyping import Bool, Float

from vae_attn.data.dataset import AnomalyData, LabelledImages
from vae_attn.data.defects import draw_defects
from vae_attn.evaluation import bootstrap, localization
from vae_attn.evaluation.explainer import BASELINES, IMAGE, RECONSTRUCTION_ERROR, Explainer

_LOG = logging.getLogger("vae_attn")
_CHUNK = 512  # images whose maps are in memory at once
# Share of normal validation pixels above the threshold that is chosen without the test set.
_FALSE_POSITIVE_RATE = 0.01

_COLUMNS = {  # of the table, with the heading of each
    "pixel_auroc": "pixel AUROC",
    "pixel_auroc_low": "95% from",
    "pixel_auroc_high": "to",
    "best_iou_test": "best IoU*",
    "iou": "IoU",
    "aupro": "AUPRO",
    "average_precision": "pixel AP",
    "pointing_game": "pointing game",
    "share_below_chance": "maps < 0.5",
    "image_auroc": "image AUROC (mass)",
    "image_auroc_max": "image AUROC (max)",
}

TABLE_NOTE = (
    "* at the threshold that is best on the test set, as in the paper; IoU takes the one that "
    f"{_FALSE_POSITIVE_RATE:.0%} of the pixels of normal validation images exceed. Pointing game: "
    "share of maps whose peak lies in the defect. Maps < 0.5: share of maps whose own pixel AUROC "
    "is below chance. Image AUROC: normal against abnormal, by the map's mean or its maximum "
    "(reconstruction_error: by the likelihood). From, to: 95% bootstrap interval over images."
)


def evaluate(
    config: ml_collections.ConfigDict, explainer: Explainer, data: AnomalyData
) -> dict[str, float]:
    """Scores every style and layer of `config.evaluate`, and the reconstruction error beside.

    Localisation is scored on the test images that have masks; where the data has none, on
    defects drawn on its normal test images (`data.defects`) if that is possible, else not at all.

    Args:
      config: see `vae_attn.config.default_config`.
      explainer: the trained model.
      data: its `validation` and `test` images are used.

    Returns:
      Flat keys `style/layer/metric`. Localisation: those of `LocalizationState.compute`, a
      bootstrap interval of the pixel AUROC, `iou` at the threshold that 1% of the pixels of
      normal validation images exceed, `pointing_game`, and `share_below_chance`, of maps whose
      own pixel AUROC is under 0.5. Images, normal against the rest of the test set:
      `image_auroc` by the map's mean, `image_auroc_max` by its maximum; keys `score/image/...`
      for scores that have no map.
    """
    test = subsample(data.test, config.evaluate.max_images, config.seed)
    located = located_images(data, config.evaluate.max_images, config.seed)
    abnormal = test.labels > 0
    metrics = {
        f"{name}/{IMAGE}/image_auroc": _image_auroc(scores, abnormal)
        for name, scores in explainer.image_scores(test.images).items()
    }
    # The counterparts, which take longest, are computed once for all styles and layers.
    _LOG.info("counterparts of %d images", len(data.validation) + len(test) + len(located))
    compared = [
        (images, explainer.counterparts(images) if len(images) else images)
        for images in (data.validation, located.images, test.images)
    ]
    if not len(located):
        _LOG.info("no masks: where the defects are is not scored, only which images have some")
    combinations = [(baseline, IMAGE) for baseline in BASELINES]
    combinations += [(s, lay) for s in config.evaluate.styles for lay in config.evaluate.layers]
    for style, layer in combinations:
        normal, found, tested = (
            functools.partial(_maps, explainer, style, layer, *images) for images in compared
        )
        scores = _localization(normal, found, located.masks) if len(located) else {}
        mass, peak = (np.concatenate(x) for x in zip(*map(_mass_and_peak, tested()), strict=True))
        scores["image_auroc_max"] = _image_auroc(peak, abnormal)
        if style != RECONSTRUCTION_ERROR:  # whose image score is the likelihood above
            scores["image_auroc"] = _image_auroc(mass, abnormal)
        if located_score := scores.get("pixel_auroc"):
            _LOG.info("%s at %s: pixel AUROC %.3f", style, layer, located_score)
        metrics |= {f"{style}/{layer}/{name}": value for name, value in scores.items()}
    return metrics


def subsample(images: LabelledImages, max_images: int, seed: int) -> LabelledImages:
    """At most `max_images` (0: all) of the images, drawn at random, in their order."""
    if not max_images or len(images) <= max_images:
        return images
    chosen = np.sort(np.random.default_rng(seed).permutation(len(images))[:max_images])
    return take(images, chosen)


def take(images: LabelledImages, chosen: np.ndarray) -> LabelledImages:
    """The chosen images, by index or by a mask."""
    indices = np.arange(len(images))[chosen]
    return LabelledImages(
        images=images.images[indices],
        labels=images.labels[indices],
        class_names=images.class_names,
        names=tuple(images.names[i] for i in indices),
        masks=None if images.masks is None else images.masks[indices],
        has_mask=images.has_mask[indices],
    )


def located_images(data: AnomalyData, max_images: int, seed: int) -> LabelledImages:
    """Test images with masks; where the data has none, defects drawn on normal test images.

    Empty where there are no masks and defects cannot be drawn.
    """
    if data.test.masks is not None or not data.draws_defects:
        return subsample(take(data.test, data.test.has_mask), max_images, seed)
    normal = data.test.images[data.test.labels == 0]
    return subsample(draw_defects(normal, seed=seed), max_images, seed)


def _maps(
    explainer: Explainer, style: str, layer: str, images: np.ndarray, counterparts: np.ndarray
) -> Iterator[Float[np.ndarray, "chunk height width"]]:
    """The maps of all images, a chunk at a time, so that memory does not grow with them."""
    for start in range(0, len(images), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        yield explainer.maps(
            images[chunk], style=style, layer=layer, counterparts=counterparts[chunk]
        )


def _localization(
    normal: Callable[[], Iterator[np.ndarray]],
    found: Callable[[], Iterator[np.ndarray]],
    masks: Bool[np.ndarray, "n height width"],
) -> dict[str, float]:
    """Scores of the maps `found()` against their masks; `normal()` sets the threshold."""
    normal_state = localization.LocalizationState.empty()
    for maps in normal():
        normal_state = normal_state.add(scores=maps, masks=np.zeros(maps.shape, bool))
    threshold = localization.threshold_from_normal(
        normal=normal_state, false_positive_rate=_FALSE_POSITIVE_RATE
    )
    state = localization.LocalizationState.empty()
    aurocs, pointing = [], []
    for number, maps in enumerate(found()):
        truth = masks[number * _CHUNK : number * _CHUNK + len(maps)]
        state = state.add(scores=maps, masks=truth)
        aurocs.append(localization.per_image_auroc(scores=maps, masks=truth))
        pointing.append(localization.pointing_game(scores=maps, masks=truth))
    interval = bootstrap.bootstrap_pixel_scores(state)["pixel_auroc"]
    return state.compute() | {
        "pixel_auroc_low": interval.low,
        "pixel_auroc_high": interval.high,
        "iou": state.iou(threshold=threshold),
        "pointing_game": float(np.nanmean(np.concatenate(pointing))),
        "share_below_chance": localization.share_below_chance(np.concatenate(aurocs)),
    }


def _mass_and_peak(maps: Float[np.ndarray, "n h w"]) -> tuple[np.ndarray, np.ndarray]:
    return maps.mean(axis=(1, 2)), maps.max(axis=(1, 2))


def _image_auroc(scores: Float[np.ndarray, "n"], abnormal: Bool[np.ndarray, "n"]) -> float:
    value = localization.image_auroc(scores=scores, labels=abnormal)
    return float("nan") if value is None else value


def write(metrics: dict[str, float], folder: pathlib.Path, *, title: str) -> pathlib.Path:
    """Writes `metrics.json` and, beside it, `table.md`.

    Args:
      metrics: of `evaluate`.
      folder: created if missing.
      title: of the table.

    Returns:
      Path of the table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sorted(metrics.items())), indent=2)
    (folder / "metrics.json").write_text(text + "\n")
    return write_table(table(metrics), folder / "table.md", title=title)


def write_table(rows: list[list[str]], path: pathlib.Path, *, title: str) -> pathlib.Path:
    """Writes rows of cells, the first of them the header, as Markdown, with `TABLE_NOTE`."""
    header, *rows = rows
    lines = [f"# {title}", ""]
    lines += ["| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows]]
    lines += ["", TABLE_NOTE.replace("*", "\\*")]
    path.write_text("\n".join(lines) + "\n")
    return path


def table(metrics: dict[str, float]) -> list[list[str]]:
    """Rows of cells: a header, then one row a style and layer, in the order of `metrics`."""
    rows = list(dict.fromkeys(key.rsplit("/", 1)[0] for key in metrics))
    return [
        ["style", "layer", *_COLUMNS.values()],
        *(
            [*row.split("/"), *(_cell(metrics.get(f"{row}/{column}")) for column in _COLUMNS)]
            for row in rows
        ),
    ]


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
