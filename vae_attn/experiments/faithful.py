"""Which maps of single latents are true: a run's measures of faithfulness, and their table.

Where an image is abnormal and why a latent says so are two questions. The scores of localisation
answer for the first; here each kind of map is asked the second (`vae_attn.faithfulness`).
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any as PyTree
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int, Key, UInt8

from vae_attn import attention, faithfulness
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.latent_use import ACTIVE_NATS, latent_kl
from vae_attn.experiments.map_functions import (
    DEEPLIFT,
    IMAGE,
    INTEGRATED_GRADIENTS,
    has_deeplift,
)
from vae_attn.experiments.maps import Counterparts, Images, Mapper
from vae_attn.models.model import Model
from vae_attn.progress import Progress
from vae_attn.reporting.tables import Table

PREFIX = "faithfulness/"
RANDOM, DIFFERENCE = "random", "difference"  # maps that know nothing of any latent
_SIGNED = (DEEPLIFT, INTEGRATED_GRADIENTS)

_MOST_LATENTS = 16
_MOST_PIXELS = 2**20  # of all images together
_FEWEST_IMAGES = 8  # though they have more
_SQUARES = 96  # per image
_CURVES = 4  # of one image in so many deletion and insertion are measured, which cost most

_LOG = logging.getLogger("vae_attn")


@dataclasses.dataclass(frozen=True)
class _Column:
    """A measure: its name in `metrics.json`, and its column's heading."""

    name: str
    heading: str


_COLUMNS = (
    _Column("correlation", "correlation"),
    _Column("correlation_of_others", "by other latents' maps"),
    _Column("which_latent", "right latent"),
    _Column("which_latent_chance", "its chance"),
    _Column("infidelity", "infidelity"),
    _Column("deletion", "deletion"),
    _Column("insertion", "insertion"),
    _Column("completeness_error", "completeness error"),
    _Column("likeness", "likeness"),
)
_MEASURES = tuple(column.name for column in _COLUMNS)
_NOTE = (
    "Pixels of an image are replaced by those of its normal counterpart x', and a map of latent i "
    "is asked how z_i changes. Correlation: of the map's sum over a random square with that change "
    "(1 is best), by the latent's own map and by the other latents' maps. Right latent: how often, "
    "among all latents' maps, its own predicts best. Infidelity: mean square error of the "
    "prediction, from 0 (true) to 1 (says nothing). Deletion, insertion: area under the share of "
    "z_i(x) - z_i(x') that is left, or reached, as the pixels that the map ranks highest are "
    "replaced (lower, or higher, is better). Completeness error: of the map's sum against "
    "z_i(x) - z_i(x'). Likeness: correlation between two latents' maps; 1 is one map for all. "
    "random knows nothing; difference is |x - x'| for every latent. This is why a latent says what "
    "it says; where an image is abnormal is another question, which contrast and the feature "
    "difference answer better."
)


def evaluate(
    config: ml_collections.ConfigDict,
    mapper: Mapper,
    images: Images,
    learned: UInt8[np.ndarray, "learned height width channels"],
    *,
    layers: tuple[str, ...],
) -> dict[str, float]:
    """Measures every kind of map of single latents, and two that know nothing of latents.

    Args:
      config: the run's; its `seed`, and `styles`, `faithful_images` and `max_images` of
        `evaluate`.
      mapper: of the trained model.
      images: to draw a sample of.
      learned: images such as the model learned from, over which a latent is in use or not: on
        abnormal ones even a latent that carries nothing moves away from the prior.
      layers: of the attention styles.

    Returns:
      `faithfulness/<style>/<layer>/<measure>`, as means over images and over the latents in use;
      the layer is `image` for maps in pixels. Nothing if fewer than two latents are in use.
    """
    images = sample(config, images)
    if not len(images):
        return {}
    chosen = latents_in_use(*mapper.encode(learned))
    if len(chosen) < 2:
        used = "one latent is" if len(chosen) else "no latent is"
        _LOG.info("%s in use: whether maps are true of their latents is not measured.", used)
        return {}
    styles = tuple(s for s in config.evaluate.styles if s in attention.PER_LATENT_STYLES)
    found = measure(mapper, images, chosen, styles=styles, layers=layers, seed=config.seed)
    return {
        f"{PREFIX}{style}/{layer}/{name}": value
        for (style, layer), values in found.items()
        for name, value in values.items()
    }


def sample(
    config: ml_collections.ConfigDict, images: Images
) -> UInt8[np.ndarray, "sample height width channels"]:
    """As many of the images as `sample_size` says, drawn at random."""
    count = sample_size(config, len(images), images.shape[1:3])
    return images[np.random.default_rng(config.seed).permutation(len(images))[:count]]


def sample_size(config: ml_collections.ConfigDict, count: int, size: tuple[int, int]) -> int:
    """How many of `count` images of a height and width are measured.

    At most `evaluate.faithful_images` and `evaluate.max_images`; of large ones fewer.
    """
    most = max(_FEWEST_IMAGES, _MOST_PIXELS // (size[0] * size[1]))
    return min(count, config.evaluate.faithful_images, most, config.evaluate.max_images or count)


def latents_in_use(
    mean: Float[np.ndarray, "n latents"], logvar: Float[np.ndarray, "n latents"]
) -> Int[np.ndarray, "chosen"]:
    """The latents that carry most, of those in use, in their order.

    Args:
      mean: of images such as the model learned from.
      logvar: likewise.
    """
    kl = latent_kl(mean, logvar)
    most = np.argsort(-kl, kind="stable")[:_MOST_LATENTS]
    return np.sort(most[kl[most] > ACTIVE_NATS])


def _means(model: Model, variables: PyTree, chosen: Array, x: Array) -> Array:
    return model.apply(variables, x, method="encode")[0][:, chosen]


def measure(
    mapper: Mapper,
    images: Images,
    chosen: Int[np.ndarray, "chosen"],
    *,
    styles: tuple[str, ...],
    layers: tuple[str, ...],
    seed: int,
) -> dict[tuple[str, str], dict[str, float]]:
    """The measures of each kind of map, by style and layer.

    Args:
      mapper: of the trained model.
      images: over which they are means.
      chosen: the latents that are explained, of at least two.
      styles: of `attention.PER_LATENT_STYLES`, at each layer.
      layers: of the encoder.
      seed: of squares and of random maps.
    """
    # A pytree, so that another checkpoint of the same model compiles nothing anew.
    fn = jax.tree_util.Partial(_means, mapper.model, mapper.variables, jnp.asarray(chosen))
    counterparts = mapper.counterparts(images)
    x, baselines = jnp.asarray(images / np.float32(255)), jnp.asarray(counterparts)
    squares_key, random_key = jax.random.split(jax.random.key(seed))
    options = {"key": squares_key, "batch_size": mapper.batch_size}
    of_each = kinds(
        mapper, images, counterparts, chosen, styles=styles, layers=layers, key=random_key
    )
    total, found = len(layers) * len(styles) + 4, {}
    title = "measuring whether maps are true of their latents"
    with Progress(title, total=total, unit="kinds of maps") as progress:
        probes = faithfulness.probe(fn, x, baselines, squares=_SQUARES, subsets=0, **options)
        for name, maps in of_each:
            values = faithfulness.measure(
                fn,
                jnp.asarray(maps),
                x,
                baselines,
                probes=probes,
                num_curves=-(-len(images) // _CURVES),
                **options,
            )
            if name[0] not in _SIGNED:
                del values["completeness_error"]
            found[name] = {key: values[key] for key in _MEASURES if key in values}
            progress.add()
    return found


def kinds(
    mapper: Mapper,
    images: Images,
    counterparts: Counterparts,
    chosen: Int[np.ndarray, "chosen"],
    *,
    styles: tuple[str, ...],
    layers: tuple[str, ...],
    key: Key[Array, ""],
) -> Iterator[tuple[tuple[str, str], Float[np.ndarray, "n chosen height width"]]]:
    """Each kind of map of single latents, and two that know nothing of latents.

    Args:
      mapper: of the trained model.
      images: to explain.
      counterparts: of the images.
      chosen: the latents.
      styles: of `attention.PER_LATENT_STYLES`, at each layer.
      layers: of the encoder.
      key: of random maps.

    Yields:
      Style and layer, and the maps: of one layer at a time, for the memory.
    """
    of = np.broadcast_to(chosen, (len(images), len(chosen)))
    for style in _SIGNED:
        if style != DEEPLIFT or has_deeplift(mapper.model):
            yield (style, IMAGE), mapper.exact_maps(images, counterparts, of, style=style).maps
    for layer in layers if styles else ():
        maps = mapper.chosen_latent_maps(images, counterparts, chosen, styles=styles, layer=layer)
        for style in styles:
            yield (style, layer), maps[style]
    shape = (*of.shape, *images.shape[1:3])
    difference = np.abs(counterparts - images / np.float32(255)).mean(axis=3)
    yield (DIFFERENCE, IMAGE), np.broadcast_to(difference[:, None], shape)
    yield (RANDOM, IMAGE), np.asarray(jax.random.uniform(key, shape))


def table(scores: Mapping[str, float]) -> list[Table]:
    """The table of a run's measures, the most correlated maps first; none where there are none."""
    measure = "/correlation"
    names = [
        key.removeprefix(PREFIX).removesuffix(measure)
        for key in scores
        if key.startswith(PREFIX) and key.endswith(measure)
    ]
    if not names:
        return []
    ordered = sorted(names, key=lambda name: -scores[f"{PREFIX}{name}/correlation"])
    rows = [["style", "layer", *(column.heading for column in _COLUMNS)]]
    for name in ordered:
        cells = (scores_lib.cell(scores, f"{PREFIX}{name}/{column.name}") for column in _COLUMNS)
        rows.append([*name.split("/"), *cells])
    return [Table("Is the map true of its latent?", rows, _NOTE)]


class Truth(NamedTuple):
    """What was measured of a kind of map; "" where nothing was.

    Attributes:
      short: beside its name.
      sentence: under it.
    """

    short: str = ""
    sentence: str = ""


def truth_of(scores: Mapping[str, float], name: str) -> Truth:
    """The truth of a kind of map, `style/layer`."""
    keys = ("correlation", "which_latent", "which_latent_chance")
    values = [scores.get(f"{PREFIX}{name}/{key}") for key in keys]
    if None in values:
        return Truth()
    correlation, right, chance = values
    return Truth(
        f"corr. {correlation:.2f}, right {right:.0%}",
        f"As an account of single latents: correlation {correlation:.2f}, right latent "
        f"{right:.0%} (chance {chance:.0%}).",
    )


def others(scores: Mapping[str, float]) -> dict[str, float]:
    """The scores apart from these."""
    return {key: value for key, value in scores.items() if not key.startswith(PREFIX)}
