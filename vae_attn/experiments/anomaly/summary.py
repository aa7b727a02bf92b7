"""The tables of a run on normal images, and the few scores by which runs are compared."""

import logging
from collections.abc import Mapping

import ml_collections

from vae_attn.data.dataset import AnomalyData
from vae_attn.experiments import faithful
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.anomaly import comparison, selection
from vae_attn.experiments.anomaly.calibration import Calibration, variant_of
from vae_attn.experiments.anomaly.collected import OWN
from vae_attn.experiments.anomaly.evaluation import ACTIVE
from vae_attn.experiments.anomaly.scores import MAP_SCORES, OPTIONAL
from vae_attn.experiments.latent_use import ACTIVE_NATS
from vae_attn.reporting.tables import Table

_LOG = logging.getLogger("vae_attn")

_FEW_LATENTS = 2  # with fewer, a model that has more is taken for collapsed

MAIN_SCORES = ("pixel_auroc", "average_precision", "aupro", "image_auroc_max")


def of_run(
    config: ml_collections.ConfigDict, scores: Mapping[str, float], data: AnomalyData
) -> list[Table]:
    """The tables of a run: beside others' numbers, where there are any, and all scores.

    Where an image is abnormal and whether a map is true of its latent are tables of their own.
    """
    compared = comparison.compare(config, {config.data.category: scores})
    size = ""
    if data.test.read_full_mask is not None:
        own = config.evaluate.mask_size == OWN
        size = "Places are scored at the masks' own size, to which maps are enlarged."
        size = size if own else "Places are scored on masks shrunk to the model's size."
    elif data.test.has_mask.any() or data.needs_drawn_defects:
        size = "Places are scored at the size of the images."
    active = active_note(scores, config.model.latents)
    missing = [f"Not scored: {sentence}." for sentence in data.missing]
    some = some_note(config, data)
    chosen = selection.described(scores) if config.evaluate.select else ""
    notes = filter(None, (data.scores_note, some, size, active, chosen, *missing))
    where = scores_table(scores, note=" ".join(notes))
    return [*compared, where, *faithful.table(scores)]


def some_note(config: ml_collections.ConfigDict, data: AnomalyData) -> str:
    """Of how many test images scores are, for under a table; "" where they are of all."""
    most, count = config.evaluate.max_images, len(data.test)
    if not most or count <= most:
        return ""
    kinds = len(data.test.kinds)
    which = "at least one of each kind" if kinds <= most else "fewer than there are kinds"
    return f"Scores are of {most} of {count} test images (evaluate.max_images), {which}."


def log(calibration: Calibration, latents: int) -> None:
    """Tells, and warns of, what a calibration found.

    Args:
      calibration: just measured.
      latents: of the model.
    """
    active = calibration.active_latents
    _LOG.info("active latents: %d of %d (mean KL over %g nats)", active, latents, ACTIVE_NATS)
    if active < _FEW_LATENTS < latents:
        _LOG.warning("%s", few_latents(active, latents))
    for found, counted in ((calibration.images, "an image"), (calibration.pixels, "a pixel")):
        if found.value is None:
            _LOG.warning("%s gets no decision: %s", counted, found.missing)
        else:
            _LOG.info("%s is abnormal above %s", counted, found.described())


def few_latents(active: int, latents: int) -> str:
    """A warning of a model that carries almost nothing."""
    are = "is" if active == 1 else "are"
    return (
        f"{active or 'none'} of {latents} latents {are} active: the model has collapsed and its "
        "maps say almost nothing; train longer or with a smaller train.beta."
    )


def active_note(scores: Mapping[str, float], latents: int) -> str:
    """How many latents are in use, for under a table; "" where it is not known."""
    if ACTIVE not in scores:
        return ""
    active = scores[ACTIVE]
    sentence = f"Active latents: {scores_lib.count(scores, ACTIVE)} of {latents} (mean KL over "
    sentence += f"{ACTIVE_NATS:g} nats on held-out images)."
    if active < _FEW_LATENTS < latents:
        few = few_latents(round(active), latents)
        sentence += f" {few[0].upper()}{few[1:]}"
    return sentence


def scores_table(scores: Mapping[str, float], *, note: str = "") -> Table:
    """The table of one run's scores: a row per style and layer, in the order of `scores`.

    Args:
      scores: of `evaluation.evaluate`.
      note: `AnomalyData.scores_note`.
    """
    had = {key.rpartition("/")[2] for key in scores}
    columns = [row for row in MAP_SCORES if row.heading]
    columns = [row for row in columns if row.needs not in OPTIONAL or row.name in had]
    cells = [["style", "layer", *(column.heading for column in columns)]]
    kept = (key for key in faithful.others(scores) if not _is_active(key))
    for name in dict.fromkeys(key.rsplit("/", 1)[0] for key in kept):
        row = (scores_lib.cell(scores, f"{name}/{c.name}", interval=True) for c in columns)
        cells.append([*name.split("/"), *row])
    if len(cells) == 1:  # nothing was scored, and the note says why
        return Table("Where is the defect?", [], note)
    notes = [column.note for column in columns if column.note]
    return Table("Where is the defect?", cells, " ".join([*notes, note]).strip())


def _is_active(key: str) -> bool:
    return key.startswith(ACTIVE)


def main_scores(config: ml_collections.ConfigDict, scores: Mapping[str, float]) -> dict[str, float]:
    """The few scores by which runs and checkpoints are compared, as `score/style/layer`.

    They are all better where higher: of the run's own maps, the paper's and the reconstruction
    error (`comparison.compared`).
    """
    names = dict.fromkeys((variant_of(config.attention).name, *comparison.compared(config)))
    return {
        f"{score}/{name}": scores[f"{name}/{score}"]
        for score in MAIN_SCORES
        for name in names
        if f"{name}/{score}" in scores
    }
