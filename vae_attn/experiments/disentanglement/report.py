"""What the page of a run on ground-truth factors shows."""

import pathlib
from typing import NamedTuple

import ml_collections
import numpy as np
from jaxtyping import Float, Int
from matplotlib.figure import Figure

from vae_attn import attention, workdir_scores
from vae_attn.data.factor_grid import FactorData
from vae_attn.errors import UserError
from vae_attn.experiments import titles
from vae_attn.experiments.disentanglement import latent_figures, representation
from vae_attn.experiments.maps import Images, Mapper
from vae_attn.experiments.protocol import Content
from vae_attn.reporting import figures
from vae_attn.training import objectives

_LATENTS_SHOWN = 8
_IMAGES_SHOWN = 6
_TRAVERSED = 3  # images from which the animation starts
# What a latent is set to: its mean over the images, and so many of its own deviations more.
_DEVIATIONS = np.linspace(-2, 2, 11).astype(np.float32)
RESPONSE_IMAGES = 2048  # over which the latents' response is measured
_SCALE_IMAGES = 300  # over which the colour scale is measured


class Response(NamedTuple):
    """How latents respond to images.

    Attributes:
      response: standard deviation of each one's mean over the images.
      centre: its mean over images and noise.
      spread: its standard deviation over both.
      latents: the most responsive ones, that one first.
    """

    response: Float[np.ndarray, "latents"]
    centre: Float[np.ndarray, "latents"]
    spread: Float[np.ndarray, "latents"]
    latents: Int[np.ndarray, "chosen"]


def respond(mapper: Mapper, images: Images) -> Response:
    """Measures how the latents respond to images."""
    # Not by their KL: early in training latents with a constant mean have one too.
    mean, logvar = mapper.encode(images)
    response = mean.std(axis=0)
    spread = np.sqrt(mean.var(axis=0) + np.exp(logvar).mean(axis=0))
    return Response(response, mean.mean(axis=0), spread, np.argsort(-response)[:_LATENTS_SHOWN])


def content(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mapper: Mapper, data: FactorData
) -> Content:
    """The figures of a run's page.

    Args:
      config: the run's.
      workdir: the run's; the runs beside it are shown too.
      mapper: of the trained model.
      data: what it learned from.
    """
    sample = data.as_uint8(data.sample(RESPONSE_IMAGES))
    response, centre, spread, latents = respond(mapper, sample)
    names = [f"z{k}" for k in latents]
    images = data.as_uint8(data.sample(_IMAGES_SHOWN, seed=config.seed))
    decoded = traverse(mapper, images[:_TRAVERSED], latents, centre, spread)
    labels = [f"z{k}\n{centre[k]:+.2f}\n± {spread[k]:.2f}" for k in latents]
    title = f"{data.name}: traversals of the most responsive latents"
    note = (
        "Columns: the latent at its mean over images and noise (beside its name), and so many of "
        "its deviations (after ±) more. The other latents stay at the image's means."
    )
    drawn = {
        "traversal": (
            latent_figures.traversal(decoded[0], _DEVIATIONS, labels, title=title, note=note),
            "What each latent draws",
            "The latents whose mean varies most over the images, from one random image. "
            f"{note}{titles.first_seed(config)}",
        ),
        "traversals": (
            latent_figures.animation(decoded, names),
            "The same, moving",
            f"Rows: random images. Each latent goes from {-_DEVIATIONS[0]:.0f} deviations below "
            f"its mean to as many above it, and back.{titles.first_seed(config)}",
        ),
        "attention": _attention(config, mapper, data, images, latents, response),
    }
    if runs := scored_neighbours(workdir.parent):
        score = representation.QUICK_SCORE.removesuffix("_quick")
        figure = latent_figures.reconstruction_against_score(
            runs, score=score, highlighted=workdir.name
        )
        caption = (
            "Every run in the folder of this one that was scored on ground-truth factors, a point "
            "a seed."
        )
        drawn["runs"] = (figure, "Disentanglement and its price", caption)
    return Content(
        summary=f"{objectives.of(config).title(config)} with {len(response)} latents learned from "
        f"{len(data)} images, one for every combination of {', '.join(data.grid.names)}.",
        drawn=drawn,
    )


def traverse(
    mapper: Mapper,
    images: Images,
    latents: Int[np.ndarray, "chosen"],
    centre: Float[np.ndarray, "latents"],
    spread: Float[np.ndarray, "latents"],
) -> Float[np.ndarray, "images chosen values height width channels"]:
    """Decodes the images' means with one latent at a time set to `_DEVIATIONS` of its spread."""
    mean, _ = mapper.encode(images)
    shape = (len(images), len(latents), len(_DEVIATIONS))
    z = np.broadcast_to(mean[:, None, None], (*shape, mean.shape[1])).copy()
    for n, latent in enumerate(latents):
        z[:, n, :, latent] = centre[latent] + _DEVIATIONS * spread[latent]
    decoded = mapper.decode(z.reshape(-1, mean.shape[1]))
    return decoded.reshape(*shape, *decoded.shape[1:])


def scored_neighbours(folder: pathlib.Path) -> dict[str, list[tuple[float, float]]]:
    """Reconstruction loss and Kim & Mnih's score of the folder's scored runs, by their names.

    A run of several seeds has one pair per seed.
    """
    runs = {}
    for run in sorted(folder.iterdir()):
        paths = sorted(run.glob("seed_*/evaluation/metrics.json"))
        for path in paths or run.glob("evaluation/metrics.json"):
            try:
                metrics = workdir_scores.of_run(path.parents[1]).scores
            except UserError:  # another run's, which reports it
                continue
            if {"reconstruction", "factor_vae"} <= metrics.keys():
                pair = (metrics["reconstruction"], metrics["factor_vae"])
                runs.setdefault(run.name, []).append(pair)
    return runs


def _attention(
    config,
    mapper: Mapper,
    data: FactorData,
    images: Images,
    latents: Int[np.ndarray, "latents"],
    response: Float[np.ndarray, "all_latents"],
) -> tuple[Figure, str, str]:
    """The paper's figure of disentanglement: one row per image, one column per latent's map."""
    style, layer = config.attention.style, config.attention.layer
    style = style if style in attention.PER_LATENT_STYLES else "paper"

    def maps(images: Images) -> np.ndarray:
        return mapper.latent_maps(images, style=style, layer=layer)[:, latents]

    sample = data.as_uint8(data.sample(_SCALE_IMAGES, seed=config.seed + 1))
    # Latents differ in scale by orders of magnitude: each has a scale of its own.
    scales = np.quantile(maps(sample), figures.FULL_COLOUR_QUANTILE, axis=(0, 2, 3))
    rows = {}
    for number, (image, image_maps) in enumerate(zip(images, maps(images), strict=True)):
        relative = image_maps / np.where(scales > 0, scales, 1.0)[:, None, None]
        overlays = figures.overlay(np.repeat(image[None], len(latents), axis=0), relative, 1.0)
        original = np.broadcast_to(image[None] / 255, (1, *overlays.shape[1:]))
        rows[f"image {number + 1}"] = np.concatenate([original, overlays])
    columns = ["input", *(f"z{k} sd {response[k]:.2f}" for k in latents)]
    note = (
        f"Full colour is the {figures.FULL_COLOUR_QUANTILE:.1%} quantile of that latent's maps "
        f"over {len(sample)} images."
    )
    title = f"{data.name}: attention of the most responsive latents, {style} at {layer}"
    figure = figures.grid(rows, columns, title=title, note=note)
    return figure, "What each latent looks at", f"Random images. {note}{titles.first_seed(config)}"
