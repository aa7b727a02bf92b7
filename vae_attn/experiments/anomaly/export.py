"""A trained run's maps as one StableHLO file that jax alone can load, and a card about it."""

import hashlib
import importlib.metadata
import json
import logging
import pathlib
from collections.abc import Callable

import jax
import jax.export
import jax.numpy as jnp
import ml_collections

from vae_attn import attributions, whole_files, workdir_scores
from vae_attn.data import sources
from vae_attn.data.dataset import to_unit
from vae_attn.experiments import model_card
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.experiments.anomaly.thresholds import Threshold
from vae_attn.experiments.map_functions import (
    DEEPLIFT,
    INTEGRATED_GRADIENTS,
    INTEGRATION_STEPS,
    has_deeplift,
    project,
)
from vae_attn.workdir import CONFIG

_LOG = logging.getLogger("vae_attn")

FOLDER = "export"  # in the workdir
FUNCTION = "attention.stablehlo"  # in that folder
LATENT_MAPS = "latent_maps.stablehlo"  # likewise, where `attention.export_latents` asks for it
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

    return _exported(attend, explainer)


def export_latent_maps(explainer: Explainer) -> jax.export.Exported:
    """`maps, z, z_counterpart = ...(images)`: why each latent differs from its counterpart's.

    The signed maps of all latents, summed over channels: each adds up to z - z_counterpart. The
    images' counterparts are computed inside.

    Args:
      explainer: of the trained model.

    Returns:
      The function, as `export`'s; its maps are of `latent_maps_style`.
    """
    model, variables = explainer.model, explainer.variables
    style = latent_maps_style(explainer)
    steps = {"steps": INTEGRATION_STEPS} if style == INTEGRATED_GRADIENTS else {}

    def mean(x: jax.Array) -> jax.Array:
        return model.apply(variables, x, method="encode")[0]

    def attribute(images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        x = to_unit(images)
        counterparts = project(model, variables, x, explainer.projection_steps)
        options = {"latent_batch_size": explainer.latent_batch_size, **steps}
        maps = getattr(attributions, style)(mean, x, counterparts, **options)
        return maps.sum(axis=-1), mean(x), mean(counterparts)

    return _exported(attribute, explainer)


def latent_maps_style(explainer: Explainer) -> str:
    """DeepLIFT's, or integrated gradients of a model with an operation without a rule."""
    return DEEPLIFT if has_deeplift(explainer.model) else INTEGRATED_GRADIENTS


def _exported(fn: Callable, explainer: Explainer) -> jax.export.Exported:
    batch, shape = jax.export.symbolic_shape("batch")[0], explainer.model.image_shape
    return jax.export.export(jax.jit(fn), platforms=PLATFORMS)(
        jax.ShapeDtypeStruct((batch, *shape), jnp.uint8)
    )


def write(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, explainer: Explainer
) -> pathlib.Path:
    """Writes `export/attention.stablehlo` and `card.json`; returns the first's path.

    With `attention.export_latents` also `export/latent_maps.stablehlo`, and with scores of this
    model `export/card.md`; otherwise an earlier one is removed, as the card would not be of it.

    Args:
      config: the run's.
      workdir: the run's; its scores stand in the card if they are of this model.
      explainer: of the trained model.
    """
    exported = export(explainer)
    content = exported.serialize()
    card = _card(config, workdir, explainer, exported)
    card["sha256"] = hashlib.sha256(content).hexdigest()
    files = {FUNCTION: content}
    if config.attention.export_latents:
        files[LATENT_MAPS] = export_latent_maps(explainer).serialize()
        digest = hashlib.sha256(files[LATENT_MAPS]).hexdigest()
        card["latent_maps"] = {
            "file": LATENT_MAPS,
            "sha256": digest,
            **_latent_maps_card(explainer),
        }
    folder = workdir / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if card["metrics"] and (kept := workdir / model_card.CARD).exists():  # of this very model
        files[model_card.CARD] = kept.read_bytes()
    # The card last: where there is one, the functions it describes are whole.
    for name, data in (files | {CARD: json.dumps(card, indent=2).encode() + b"\n"}).items():
        with whole_files.writing(folder / name) as temporary:
            temporary.write_bytes(data)
    for name in {LATENT_MAPS, model_card.CARD} - set(files):
        (folder / name).unlink(missing_ok=True)
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
            "channels": _channels(channels, config.data.frames),
            "resizing": "to the square, by antialiased Lanczos (Pillow's LANCZOS)",
            "normalisation": "inside the function: divided by 255"
            + _normalisation(explainer.model),
        },
        "output": {
            "maps": {
                "shape": ["batch", height, width],
                "meaning": "anomaly of each pixel, calibrated by normal images; no unit",
                **_threshold_card(calibration.pixels),
            },
            "scores": {
                "shape": ["batch"],
                "meaning": "anomaly of each image, its map's maximum",
                **_threshold_card(calibration.images),
            },
        },
        "attention": {
            "style": variant.style,
            "layers": list(variant.layers),
            "calibration": variant.calibration,
            "projection_steps": calibration.projection_steps,
            **({"head": calibration.head} if calibration.head else {}),
        },
        "data": {
            key: config.data[key]
            for key in dict.fromkeys(("name", "dir", *sources.of(config).which, "image_size"))
        },
        "model": {
            "name": config.model.name,
            "latents": config.model.latents,
            "active_latents": calibration.active_latents,
        },
        "parameters": calibration.parameters,
        "config_sha256": hashlib.sha256((workdir / CONFIG).read_bytes()).hexdigest(),
        "metrics": {k.removeprefix(own): v for k, v in found.scores.items() if k.startswith(own)},
        **({"metrics_missing": found.missing} if found.missing else {}),
        "platforms": list(exported.platforms),
        "calling_convention_version": exported.calling_convention_version,
        "versions": {name: _version(name) for name in ("vae_attn", "jax", "jaxlib", "flax")},
    }


def _channels(channels: int, frames: int) -> str:
    if frames > 1:
        return f"a grey frame, and its absolute differences to the {frames - 1} before it"
    return "grey (ITU-R 601 luma)" if channels == 1 else "RGB"


def _threshold_card(threshold: Threshold) -> dict:
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
    meaning = threshold.described().partition(", which ")[2]
    return known | {"false_alarm_rate_interval": interval, "threshold_meaning": meaning}


def _latent_maps_card(explainer: Explainer) -> dict:
    height, width, _ = explainer.model.image_shape
    latents, style = explainer.model.latents, latent_maps_style(explainer)
    within = "rounding" if style == DEEPLIFT else "the error of a sum over steps, some 2%"
    return {
        "format": "jax.export: maps, z, z_counterpart = "
        "jax.export.deserialize(content).call(images), of the same images",
        "style": style if style == DEEPLIFT else f"{style}, {INTEGRATION_STEPS} steps",
        "output": {
            "maps": {
                "shape": ["batch", latents, height, width],
                "meaning": "signed: what each pixel adds to z - z_counterpart, which the sum of a "
                f"map is to {within}",
            },
            "z": {"shape": ["batch", latents], "meaning": "the latents' means for the image"},
            "z_counterpart": {
                "shape": ["batch", latents],
                "meaning": "their means for the image's normal counterpart, as the model draws it",
            },
        },
    }


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
