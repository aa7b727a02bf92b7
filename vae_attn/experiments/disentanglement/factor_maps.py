"""Does a latent's map lie where its factor is? Ground-truth factors give the pixels exactly.

On a grid of factors the pixels that change when one factor alone changes are known. A latent that
stands for the factor should be explained by them (`faithfulness.relevance_mass_accuracy`,
`relevance_rank_accuracy`).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Bool, Float, Int

from vae_attn import attention, faithfulness
from vae_attn.data.factor_grid import FactorData
from vae_attn.experiments import faithful
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.disentanglement.codes import CodesOf, sample_codes
from vae_attn.experiments.disentanglement.mutual_information import mutual_information
from vae_attn.experiments.map_functions import IMAGE
from vae_attn.experiments.maps import Mapper
from vae_attn.reporting.tables import Table

CHANCE = "chance"  # a map that is the same everywhere
_MASS, _RANK = "factor_mass", "factor_rank"
_NOTE = (
    "Each factor's latent is the one that carries most information about it. Where the factor is: "
    "the pixels in which an image differs from its neighbours on the grid, whose class of this "
    "factor alone is one lower or higher. Mass: the share of sum |map| that lies there. Rank: the "
    "share that does of as many pixels of largest |map|. Both are means over images and factors; "
    "then the mass of each factor's latent. chance is the share of all pixels; difference is "
    "|x - x'| for every latent."
)


def evaluate(
    config: ml_collections.ConfigDict,
    mapper: Mapper,
    data: FactorData,
    codes_of: CodesOf,
    *,
    layers: tuple[str, ...],
) -> dict[str, float]:
    """How much of every kind of map lies where the latent's factor is.

    Args:
      config: the run's; as of `faithful.evaluate`, and `evaluate.points`, from which latents are
        matched with factors.
      mapper: of the trained model.
      data: the images, of which a sample is drawn.
      codes_of: the latents' means by image index.
      layers: of the attention styles.

    Returns:
      `faithfulness/<style>/<layer>/factor_mass` and `factor_rank`, as means over images and
      factors, and `_<factor>` appended over images. Nothing if no latent is in use.
    """
    rng = np.random.default_rng(config.seed)
    indices = rng.permutation(len(data))[
        : faithful.sample_size(config, len(data), data.image_shape[:2])
    ]
    images = data.as_uint8(data.stored[indices])
    if not len(images):
        return {}
    used = faithful.latents_in_use(*mapper.encode(images))
    if not len(used):
        return {}
    codes, factors = sample_codes(codes_of, data.grid, rng, num_samples=config.evaluate.points)
    chosen = used[best_latents(codes[:, used], factors)]
    truth = np.stack([changed_pixels(data, indices, k) for k in data.grid.varying], axis=1)
    styles = tuple(s for s in config.evaluate.styles if s in attention.PER_LATENT_STYLES)
    kinds = faithful.kinds(
        *(mapper, images, mapper.counterparts(images), chosen),
        styles=styles,
        layers=layers,
        key=jax.random.key(config.seed),
    )
    names = [data.grid.names[k] for k in data.grid.varying]
    share = truth.mean(axis=(2, 3))
    found = {(CHANCE, IMAGE): {_MASS: share, _RANK: share}}
    for kind, maps in kinds:
        pair = (jnp.asarray(maps), jnp.asarray(truth))
        found[kind] = {
            _MASS: np.asarray(faithfulness.relevance_mass_accuracy(*pair)),
            _RANK: np.asarray(faithfulness.relevance_rank_accuracy(*pair)),
        }
    return {
        f"{faithful.PREFIX}{style}/{layer}/{name}": value
        for (style, layer), values in found.items()
        for measure, of_each in values.items()
        for name, value in _means(measure, of_each, share > 0, names).items()
    }


def best_latents(
    codes: Float[np.ndarray, "n latents"], factors: Int[np.ndarray, "n factors"]
) -> Int[np.ndarray, "factors"]:
    """The latent that carries most information about each factor, as in MIG."""
    return mutual_information(codes=codes, factors=factors).argmax(axis=0)


def changed_pixels(
    data: FactorData, indices: Int[np.ndarray, "n"], factor: int
) -> Bool[np.ndarray, "n height width"]:
    """The pixels in which images differ from their neighbours in one factor.

    Args:
      data: the images.
      indices: which of them.
      factor: its position in the grid. The neighbours are the images whose class of it is one lower
        or higher, where there is one, and which are alike in all other factors.
    """
    classes = data.grid.classes(indices)
    images = data.as_uint8(data.stored[indices])
    changed = np.zeros(images.shape[:3], bool)
    for step in (-1, 1):
        moved = classes.copy()
        moved[:, factor] = np.clip(moved[:, factor] + step, 0, data.grid.sizes[factor] - 1)
        neighbours = data.as_uint8(data.stored[data.grid.indices(moved)])
        changed |= (neighbours != images).any(axis=3)
    return changed


def _means(
    measure: str,
    of_each: Float[np.ndarray, "n factors"],
    known: Bool[np.ndarray, "n factors"],
    names: list[str],
) -> dict[str, float]:
    """Over images that change with the factor at all; a factor with none is left out."""
    means = {
        f"{measure}_{name}": float(of_each[known[:, k], k].mean())
        for k, name in enumerate(names)
        if known[:, k].any()
    }
    return {measure: float(np.mean(list(means.values())))} | means if means else {}


def table(scores: Mapping[str, float]) -> list[Table]:
    """The table, the maps with most of their mass in place first; none where nothing was measured.

    Args:
      scores: of a run.
    """
    keys = [key for key in scores if key.startswith(faithful.PREFIX)]
    names = [key.removesuffix(f"/{_MASS}") for key in keys if key.endswith(f"/{_MASS}")]
    if not names:
        return []
    of_chance = f"{faithful.PREFIX}{CHANCE}/{IMAGE}/{_MASS}_"
    factors = [
        key.removeprefix(of_chance)
        for key in keys
        if key.startswith(of_chance) and not key.endswith(scores_lib.STD)
    ]
    rows = [["style", "layer", "mass", "rank", *factors]]
    for name in sorted(names, key=lambda name: -scores[f"{name}/{_MASS}"]):
        columns = (_MASS, _RANK, *(f"{_MASS}_{factor}" for factor in factors))
        cells = (scores_lib.cell(scores, f"{name}/{column}") for column in columns)
        rows.append([*name.removeprefix(faithful.PREFIX).split("/"), *cells])
    return [Table("Is the map where its factor is?", rows, _NOTE)]
