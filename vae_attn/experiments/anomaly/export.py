"""A trained run's maps as one StableHLO file that jax alone can load, and a card about it."""

import hashlib
import importlib.metadata
import json
import logging
import pathlib

import jax
import jax.export
import jax.numpy as jnp
import ml_collections

from vae_attn import whole_files, workdir_scores
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.experiments.anomaly.thresholds import Threshold

_LOG = logging.getLogger("vae_attn")

FOLDER = "export"  # in the workdir
FUNCTION = "attention.stablehlo"  # in that folder
CARD = "card.json"

PLATFORMS = ("cpu", "cuda", "tpu")


def export(explainer: Explainer) -> jax.export.Exported:
    """`maps, scores = explainer(images)` with the parameters inside, for a batch of any size.

    Args:
      explainer: of the trained model.

    Returns:
      The function, for every one of `PLATFORMS`; its images are uint8 and of the model's size.
    """

    def attend(images: jax.Array) -> tuple[jax.Array, jax.Array]:
        return explainer.explain(images)

    batch, shape = jax.export.symbolic_shape("batch")[0], explainer.model.image_shape
    return jax.export.export(jax.jit(attend), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct((batch, *shape), jnp.uint8)
    )


def write(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, explainer: Explainer
) -> pathlib.Path:
    """Writes `export/attention.stablehlo` and `export/card.json`; returns the first's path.

    Args:
      config: the run's.
      workdir: the run's; its scores stand in the card if they are of this model.
      explainer: of the trained model.
    """
    exported = export(explainer)
    content = exported.serialize()
    card = _card(config, workdir, explainer, exported)
    card["sha256"] = hashlib.sha256(content).hexdigest()
    folder = workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    # The card last: where there is one, the function that it tells of is whole.
    for name, data in ((FUNCTION, content), (CARD, json.dumps(card, indent=2).encode() + b"\n")):
        with whole_files.writing(folder / name) as temporary:
            temporary.write_bytes(data)
    return folder / FUNCTION


def _card(config, workdir: pathlib.Path, explainer: Explainer, exported) -> dict:
    height, width, channels = explainer.model.image_shape
    calibration, variant = explainer.calibration, explainer.variant
    found = workdir_scores.of_run(workdir, [calibration.parameters])
    if found.missing:
        _LOG.warning("the card has no scores: %s", found.missing)
    own = f"{variant.name}/"
    return {
        "file": FUNCTION,
        "format": "jax.export: maps, scores = jax.export.deserialize(content).call(images)",
        "input": {
            "shape": ["batch", height, width, channels],
            "dtype": "uint8",
            "range": [0, 255],
            "channels": "grey (ITU-R 601 luma)" if channels == 1 else "RGB",
            "resizing": "to the square, by antialiased Lanczos (Pillow's LANCZOS)",
            "normalisation": "inside the function: divided by 255"
            + _normalisation(explainer.model),
        },
        "output": {
            "maps": {
                "shape": ["batch", height, width],
                "meaning": "anomaly of each pixel, calibrated by normal images; no unit",
                **_told(calibration.pixels),
            },
            "scores": {
                "shape": ["batch"],
                "meaning": "anomaly of each image, its map's maximum",
                **_told(calibration.images),
            },
        },
        "attention": {
            "style": variant.style,
            "layers": list(variant.layers),
            "calibration": variant.calibration,
            "projection_steps": calibration.projection_steps,
        },
        "data": {
            key: config.data[key] for key in ("name", "dir", "category", "digit", "image_size")
        },
        "model": {
            "name": config.model.name,
            "latents": config.model.latents,
            "active_latents": calibration.active_latents,
        },
        "parameters": calibration.parameters,
        "config_sha256": hashlib.sha256((workdir / "config.json").read_bytes()).hexdigest(),
        "metrics": {k.removeprefix(own): v for k, v in found.scores.items() if k.startswith(own)},
        **({"metrics_missing": found.missing} if found.missing else {}),
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "versions": {name: _version(name) for name in ("vae_attn", "jax", "jaxlib", "flax")},
    }


def _told(threshold: Threshold) -> dict:
    """A threshold, its meaning, and how sure it is."""
    known = {
        "threshold": threshold.value,
        "false_alarm_rate": threshold.rate,
        "held_out_normal_images": threshold.images,
    }
    if threshold.share:
        known |= {"false_alarm_above_share_of_pixels": threshold.share}
    if threshold.value is None:
        return known | {"threshold_meaning": f"there is none: {threshold.missing}"}
    interval = [threshold.low, threshold.high]
    meaning = threshold.told().partition(", which ")[2]
    return known | {"false_alarm_rate_interval": interval, "threshold_meaning": meaning}


def _normalisation(model) -> str:
    if not getattr(model, "input_mean", ()):  # which models of one's own need not have
        return ""
    mean, std = list(model.input_mean), list(model.input_std)
    return f", and for the encoder minus {mean}, divided by {std}"


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return None
