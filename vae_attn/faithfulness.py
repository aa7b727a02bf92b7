"""Is a map true of its latent? Measures of any attribution of any function, in plain JAX.

A map claims which pixels make z_i(x) differ from z_i(x'), x' being a baseline such as the model's
own normal counterpart of x. The claim can be tested: give some pixels S of x the baseline's values
and see whether z_i moves as the map of latent i said. The measures work on two arrays,

    changes    z_i(x) - z_i(x with S taken from x'), of every latent i     (batch, masks, latents)
    sums       the sum of each latent's map over S, what the map predicts  (batch, masks, latents)

for masks S that are drawn once per image and shared by all latents and all maps. `measure` puts
everything into one table:

    table = faithfulness.measure(encode_mean, maps, images, baselines, key=jax.random.key(0))
    print(faithfulness.format_table({"deeplift": table}))

Maps are (batch, latents, height, width). One that has negative values is taken as signed. One that
has none says how much a pixel matters and not in which direction, so it is compared with the change
towards the baseline, sign(z_i(x) - z_i(x')) times the change. (A signed map without negative values
that adds up to z_i(x) - z_i(x') gives the same either way.)

The function is any callable from images to (batch, latents) whose images do not interact. One that
is a pytree, such as `jax.tree_util.Partial(encode, params)` or a method of an Equinox module, is
compiled once for all weights; the weights that a closure holds are compiled into the program.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any as PyTree

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

# Masks: the pixels that are replaced.


@functools.partial(jax.jit, static_argnames=("batch", "image_size", "count", "sides"))
def random_squares(
    key: Key[Array, ""],
    batch: int,
    image_size: tuple[int, int],
    *,
    count: int,
    sides: tuple[int, int] | None = None,
) -> Bool[Array, "batch count height width"]:
    """Squares within the image, at uniformly random places.

    Args:
      key: of the random numbers.
      batch: the number of images.
      image_size: height and width.
      count: of squares per image.
      sides: the least and the largest side in pixels, between which they are uniform; None is 3/32
        to 3/8 of the image's shorter side.
    """
    shorter = min(image_size)
    low, high = sides or (max(1, 3 * shorter // 32), max(1, 3 * shorter // 8))
    size_key, *place_keys = jax.random.split(key, 3)
    side = jax.random.randint(size_key, (batch, count), low, high + 1)

    def inside(key: Key[Array, ""], length: int) -> Bool[Array, "batch count length"]:
        start = jax.random.randint(key, (batch, count), 0, length - side + 1)[..., None]
        place = jnp.arange(length)[None, None]
        return (place >= start) & (place < start + side[..., None])

    rows, columns = map(inside, place_keys, image_size)
    return rows[..., None] & columns[:, :, None]


@functools.partial(jax.jit, static_argnames=("batch", "image_size", "count", "share"))
def random_subsets(
    key: Key[Array, ""],
    batch: int,
    image_size: tuple[int, int],
    *,
    count: int,
    share: float = 0.1,
) -> Bool[Array, "batch count height width"]:
    """Random subsets of the image's pixels, all of the same size.

    Args:
      key: of the random numbers.
      batch: the number of images.
      image_size: height and width.
      count: of subsets per image.
      share: of the pixels that a subset has, at least one.
    """
    height, width = image_size
    size = max(1, round(share * height * width))

    def subsets(key: Key[Array, ""]) -> Bool[Array, "count height width"]:
        places = jnp.broadcast_to(jnp.arange(height * width), (count, height * width))
        shuffled = jax.random.permutation(key, places, axis=1, independent=True)
        return (shuffled < size).reshape(count, height, width)

    return jax.lax.map(subsets, jax.random.split(key, batch))


# What the function does, and what the maps predict.


def changes(
    fn: Callable[[Array], Array],
    images: Float[Array, "batch height width c"],
    baselines: Float[Array, "batch height width c"],
    masks: Bool[Array, "batch masks height width"],
    *,
    batch_size: int = 256,
) -> Float[Array, "batch masks latents"]:
    """z(x) - z(x_S): what changes when the pixels of each mask S take the baseline's values.

    Args:
      fn: see the module.
      images: x.
      baselines: x'.
      masks: S; see `random_squares`.
      batch_size: how many images are made and evaluated at once.

    Raises:
      ValueError: if fn does not return (batch, latents).
    """
    total = len(images) * (masks.shape[1] + 1)
    size = min(batch_size, total)
    leaves, structure = jax.tree.flatten(fn)
    arrays = [leaf if isinstance(leaf, jax.Array) else None for leaf in leaves]
    rest = tuple(None if isinstance(leaf, jax.Array) else leaf for leaf in leaves)
    static = {"structure": structure, "rest": rest, "size": size}
    parts = [
        _with_masks(arrays, images, baselines, masks, jnp.asarray(start), **static)
        for start in range(0, total, size)
    ]
    if parts[0].ndim != 2:
        raise ValueError(
            f"the function must return (batch, latents), and returned {parts[0].shape}."
        )
    return _less_the_first(parts, masks)


@functools.partial(jax.jit, static_argnames=("structure", "rest", "size"))
def _with_masks(arrays, images, baselines, masks, start, *, structure, rest, size) -> Array:
    """The function under some of all images' masks, before which comes an empty one for each."""
    leaves = [a if r is None else r for a, r in zip(arrays, rest, strict=True)]
    fn = jax.tree.unflatten(structure, leaves)
    # The last part is filled up with what is cut off again, so that all have one shape.
    each = masks.shape[1] + 1
    number = jnp.minimum(start + jnp.arange(size), len(images) * each - 1)
    image, mask = number // each, number % each
    chosen = masks[image, mask - 1] & (mask > 0)[:, None, None]
    return fn(jnp.where(chosen[..., None], baselines[image], images[image]))


@jax.jit
def _less_the_first(parts: Sequence[Array], masks: Array) -> Array:
    batch, each = masks.shape[0], masks.shape[1] + 1
    z = jnp.concatenate(parts)[: batch * each].reshape(batch, each, -1)
    return z[:, :1] - z[:, 1:]


@jax.jit
def sums(
    maps: Float[Array, "batch latents height width"],
    masks: Bool[Array, "batch masks height width"],
) -> Float[Array, "batch masks latents"]:
    """The sum of each map over each mask: the change that the map predicts."""
    return jnp.einsum("bdhw,bnhw->bnd", maps, masks.astype(maps.dtype), precision="highest")


# Measures of predicted and actual changes.


@jax.jit
def correlation(
    predicted: Float[Array, "batch masks latents"], actual: Float[Array, "batch masks latents"]
) -> Float[Array, "batch latents"]:
    """Faithfulness correlation (Bhatt et al., IJCAI 2020, definition 3), per image and latent.

    Pearson's correlation, over the masks S, of sum_{p in S} map_i[p] with z_i(x) - z_i(x_S). With
    `random_subsets` it is the definition; `random_squares` ask about connected places. 0 where
    either does not vary.

    Args:
      predicted: `sums`.
      actual: `changes`.
    """
    return jnp.sum(_standard(predicted, 1) * _standard(actual, 1), axis=1)


@jax.jit
def correlation_matrix(
    predicted: Float[Array, "batch masks latents"], actual: Float[Array, "batch masks latents"]
) -> Float[Array, "batch latents latents"]:
    """`correlation` of each latent's changes (rows) with every latent's map (columns)."""
    return jnp.einsum(
        "bni,bnj->bij", _standard(actual, 1), _standard(predicted, 1), precision="highest"
    )


def _standard(x: Array, axis: int) -> Array:
    """Mean 0 and norm 1 along an axis; 0 where nothing varies beyond rounding."""
    centered = x - x.mean(axis=axis, keepdims=True)
    norm = jnp.linalg.norm(centered, axis=axis, keepdims=True)
    noise = 1e-6 * jnp.linalg.norm(x, axis=axis, keepdims=True)
    return jnp.where(norm > noise, centered / jnp.where(norm > noise, norm, 1), 0)


@jax.jit
def which_latent(
    predicted: Float[Array, "batch masks latents"], actual: Float[Array, "batch masks latents"]
) -> Float[Array, "batch latents"]:
    """Whether, among all latents' maps, a latent's own predicts its changes best.

    1 if the correlation of z_i's changes with map i exceeds that with every other latent's map;
    where n maps are equally good, 1/n if map i is among them. Its mean is the accuracy of finding
    the right latent; chance is 1 / latents, and is what one map for all latents gets. Ours: it is
    what distinguishes an explanation of each latent from a map of where the image is odd.

    Args:
      predicted: `sums`.
      actual: `changes`.
    """
    matrix = correlation_matrix(predicted, actual)
    best = matrix >= matrix.max(axis=2, keepdims=True) - 1e-6
    return jnp.diagonal(best, axis1=1, axis2=2) / best.sum(axis=2)


@functools.partial(jax.jit, static_argnames=("scaled", "relative"))
def infidelity(
    predicted: Float[Array, "batch masks latents"],
    actual: Float[Array, "batch masks latents"],
    *,
    scaled: bool = False,
    relative: bool = False,
) -> Float[Array, "batch latents"]:
    """Infidelity (Yeh et al., NeurIPS 2019, definition 2.1), per image and latent. Lower is better.

    The mean over perturbations I of (I^T Phi - (z_i(x) - z_i(x - I)))^2. Here I is x - x' in S and
    0 elsewhere, and Phi is map / (x - x'), so that I^T Phi is the map's sum over S. Any other
    perturbations do as well, with I^T Phi as `predicted`.

    Args:
      predicted: `sums`.
      actual: `changes`.
      scaled: whether the map is first scaled by its best factor, E[predicted actual] /
        E[predicted^2] (their section 2.2; Captum's `normalize`).
      relative: whether to divide by the mean of actual^2: then 1 is what an empty map gets, and
        with `scaled` the values are between 0 and 1.
    """
    if scaled:
        square = jnp.mean(predicted**2, axis=1, keepdims=True)
        product = jnp.mean(predicted * actual, axis=1, keepdims=True)
        predicted = predicted * _ratio(product, square)
    error = jnp.mean((predicted - actual) ** 2, axis=1)
    return _ratio(error, jnp.mean(actual**2, axis=1)) if relative else error


def _ratio(a: Array, b: Array) -> Array:
    """The ratio; 0 where the divisor is 0."""
    return jnp.where(b != 0, a / jnp.where(b != 0, b, 1), 0)


@jax.jit
def completeness_error(
    maps: Float[Array, "batch latents height width"], change: Float[Array, "batch latents"]
) -> Float[Array, "batch latents"]:
    """|sum of map_i - (z_i(x) - z_i(x'))|, relative to the mean of |z_i(x) - z_i(x')| over images.

    Completeness is axiom 3 of Sundararajan et al. (ICML 2017), their proposition 1.

    Args:
      maps: signed.
      change: z(x) - z(x').
    """
    error = jnp.abs(maps.sum(axis=(2, 3)) - change)
    return _ratio(error, jnp.broadcast_to(jnp.abs(change).mean(axis=0), error.shape))


# Deletion and insertion.


@jax.jit
def deletion_order(
    maps: Float[Array, "batch latents height width"],
) -> Int[Array, "batch latents height width"]:
    """Each pixel's place in the order in which it is replaced: 0 goes first.

    The order in which the map itself says that z_i gets to z_i(x') soonest, and stays there. Let T
    be the map's sum, which is the change to undo. First go the pixels that pull z_i towards T's
    sign, the strongest first, until their sum is T. Then the others of both signs take turns, the
    strongest first, so that what went of the one balances what went of the other. For a map without
    negative values this is the usual order, by value. So a map with a sign may use it, and is not
    led to overshoot by it, and one without is not punished for having none.
    """

    def ranks(flat: Float[Array, "pixels"]) -> Int[Array, "pixels"]:
        total = flat.sum()
        towards = jnp.where(total < 0, -flat, flat)
        order = jnp.argsort(towards, descending=True)
        pull = towards[order]
        place = jnp.arange(len(flat))
        positive, negative = jnp.maximum(pull, 0), jnp.maximum(-pull, 0)
        first = (pull > 0) & (jnp.cumsum(positive) - positive < jnp.abs(total))
        positive = jnp.where(first, 0, positive)
        # How much of its sign's mass has gone when a pixel's turn comes.
        gone = jnp.where(
            pull > 0,
            _ratio(jnp.cumsum(positive) - positive / 2, positive.sum()),
            _ratio(jnp.cumsum(negative[::-1])[::-1] - negative / 2, negative.sum()),
        )
        turn = jnp.where(first, place - len(flat), jnp.where(pull == 0, 2.0, gone))
        return jnp.zeros_like(place).at[order[jnp.argsort(turn)]].set(place)

    one_by_one = maps.reshape(-1, maps.shape[2] * maps.shape[3])
    return jax.vmap(ranks)(one_by_one).reshape(maps.shape)


def deletion(
    fn: Callable[[Array], Array],
    maps: Float[Array, "batch latents height width"],
    images: Float[Array, "batch height width c"],
    baselines: Float[Array, "batch height width c"],
    *,
    shares: Sequence[float] = SHARES,
    batch_size: int = 256,
) -> Float[Array, "latents shares"]:
    """The share of z_i(x) - z_i(x') that is left when a share of the pixels is replaced.

    sum over images of |z_i(x_S) - z_i(x')| / sum over images of |z_i(x) - z_i(x')|, S being the
    pixels that come first in map i's `deletion_order`. From 1 to 0; the sooner low, the better, and
    overshooting counts as what it is, a distance. After the deletion game of Petsiuk et al. (BMVC
    2018), with the baseline in place of grey. Divided by a sum over images, because a latent that
    hardly deviates in an image leaves nothing to divide by.

    Args:
      fn: see the module.
      maps: of x, one per latent.
      images: x.
      baselines: x'.
      shares: of the pixels, from 0 to 1.
      batch_size: see `changes`.
    """
    return _curve(fn, maps, images, baselines, shares, batch_size, delete=True)


def insertion(
    fn: Callable[[Array], Array],
    maps: Float[Array, "batch latents height width"],
    images: Float[Array, "batch height width c"],
    baselines: Float[Array, "batch height width c"],
    *,
    shares: Sequence[float] = SHARES,
    batch_size: int = 256,
) -> Float[Array, "latents shares"]:
    """The share of z_i(x) - z_i(x') that is reached when a share of x's pixels is put into x'.

    1 - sum over images of |z_i(x) - z_i(x'_S)| / sum over images of |z_i(x) - z_i(x')|, S being
    as in `deletion`, whose arguments it has. From 0 to 1; the sooner high, the better.
    """
    return 1 - _curve(fn, maps, images, baselines, shares, batch_size, delete=False)


def _curve(fn, maps, images, baselines, shares, batch_size, *, delete: bool) -> Array:
    """The distance to the goal, z(x') or z(x), relative to the whole way."""
    _check_sizes(maps, images)
    pixels = maps.shape[2] * maps.shape[3]
    counts = [round(share * pixels) for share in shares]
    # Where none or all are replaced, the function is known: the whole way, or none, is left.
    between = [count for count in counts if 0 < count < pixels]
    order, everything = deletion_order(maps), jnp.ones_like(maps[:, :1], bool)
    whole = changes(fn, images, baselines, everything, batch_size=batch_size)[:, 0]
    start = _ratio(*(2 * [jnp.abs(whole).sum(axis=0)]))
    curves = []
    for i in range(maps.shape[1]):
        ends = {0: start[i], pixels: jnp.zeros_like(start[i])}
        if between:
            masks = _first_pixels(order, jnp.asarray(between), jnp.asarray(i), delete=delete)
            change = changes(fn, images, baselines, masks, batch_size=batch_size)
            left = _distance(change, whole, jnp.asarray(i), delete=delete)
            ends |= dict(zip(between, left, strict=True))
        curves.append(jnp.stack([ends[count] for count in counts]))
    return jnp.stack(curves)


@functools.partial(jax.jit, static_argnames="delete")
def _first_pixels(order: Array, counts: Array, i: Array, *, delete: bool) -> Array:
    first = order[:, i, None] < counts[None, :, None, None]
    return first if delete else ~first  # x' with S from x is x with the others from x'


@functools.partial(jax.jit, static_argnames="delete")
def _distance(change: Array, whole: Array, i: Array, *, delete: bool) -> Array:
    change, whole = change[:, :, i], whole[:, i]
    left = jnp.abs(whole[:, None] - change if delete else change).sum(axis=0)
    return _ratio(left, jnp.broadcast_to(jnp.abs(whole).sum(), left.shape))


def area(
    curves: Float[Array, "latents shares"], shares: Sequence[float] = SHARES
) -> Float[Array, "latents"]:
    """The area under `deletion` or `insertion`, by trapezoids."""
    return jnp.trapezoid(curves, jnp.asarray(shares, curves.dtype)[None], axis=1)


# Measures of maps alone.


@jax.jit
def likeness(maps: Float[Array, "batch latents height width"]) -> Float[Array, "batch"]:
    """The mean correlation, over pixels, between two latents' maps of an image.

    1 says that there is one map for all latents. 0 for a single latent.
    """
    flat = _standard(maps.reshape(*maps.shape[:2], -1), 2)
    matrix = jnp.einsum("bip,bjp->bij", flat, flat, precision="highest")
    pairs = maps.shape[1] * (maps.shape[1] - 1)
    own = jnp.trace(matrix, axis1=1, axis2=2)
    return (matrix.sum(axis=(1, 2)) - own) / max(pairs, 1)


@jax.jit
def rank_correlation(
    first: Float[Array, "batch latents height width"],
    second: Float[Array, "batch latents height width"],
) -> Float[Array, "batch latents"]:
    """Spearman's rank correlation of two maps; pixels of equal value share their mean rank."""

    def ranks(flat: Float[Array, "pixels"]) -> Float[Array, "pixels"]:
        ordered = jnp.sort(flat)
        low, high = (jnp.searchsorted(ordered, flat, side=side) for side in ("left", "right"))
        return ((low + high) / 2).astype(flat.dtype)

    a, b = (
        _standard(jax.vmap(ranks)(m.reshape(-1, m.shape[2] * m.shape[3])), 1)
        for m in (first, second)
    )
    return jnp.sum(a * b, axis=1).reshape(first.shape[:2])


def max_sensitivity(
    explain: Callable[[Array], Array],
    images: Float[Array, "batch *shape"],
    perturbations: Float[Array, "count batch *shape"],
) -> Float[Array, "batch latents"]:
    """Max-sensitivity (Yeh et al., NeurIPS 2019, definition 4.1), relative as Captum has it.

    The maximum over perturbations e of |Phi(x + e) - Phi(x)| / |Phi(x)|, in Euclidean norms. Lower
    is better, but only among maps that are true: an empty one is not sensitive to anything.

    Args:
      explain: from images to maps, (batch, latents, ...); jitted if it is to be fast.
      images: x.
      perturbations: for instance uniform in [-0.02, 0.02].
    """

    def norm(maps: Array) -> Float[Array, "batch latents"]:
        return jnp.linalg.norm(maps.reshape(*maps.shape[:2], -1), axis=2)

    maps = explain(images)
    differences = [norm(explain(images + e) - maps) for e in perturbations]
    return _ratio(functools.reduce(jnp.maximum, differences), norm(maps))


# Randomised weights.


def randomized(params: PyTree, groups: Sequence[str], *, key: Key[Array, ""]) -> Iterator[PyTree]:
    """The parameters with the first group's shuffled, then the first two groups', and so on.

    The cascading randomisation of Adebayo et al. (NeurIPS 2018, section 3). A weight is replaced by
    a random permutation of its entries, which leaves its scale as it is.

    Args:
      params: any pytree.
      groups: from the head down, names of layers: a weight belongs to the group whose name is in
        its path, such as `mean` in `params/mean/kernel`.
      key: of the permutations.

    Raises:
      ValueError: if no weight belongs to a group.
    """
    for number, group in enumerate(groups):
        group_key = jax.random.fold_in(key, number)
        leaves, structure = jax.tree_util.tree_flatten_with_path(params)
        paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
        inside = [f"/{group}/" in f"/{path}/" for path in paths]
        if not any(inside):
            raise ValueError(f"no weight has {group!r} in its path; the paths are {paths}.")
        shuffled = [
            _shuffled(jax.random.fold_in(group_key, n), leaf) if one else leaf
            for n, ((_, leaf), one) in enumerate(zip(leaves, inside, strict=True))
        ]
        params = jax.tree.unflatten(structure, shuffled)
        yield params


def _shuffled(key: Array, leaf: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
    return jax.random.permutation(key, leaf.reshape(-1)).reshape(leaf.shape)


def randomization(
    explain: Callable[[PyTree], Array],
    params: PyTree,
    groups: Sequence[str],
    *,
    key: Key[Array, ""],
) -> Float[Array, "groups batch latents"]:
    """How much of a map survives when the weights are randomised from the head down.

    Spearman's rank correlation of the map with the map of the `randomized` model, after each group
    (Adebayo et al., NeurIPS 2018). A map that stays alike does not depend on what was learnt.

    Args:
      explain: from parameters to maps, (batch, latents, height, width).
      params: of the model.
      groups: see `randomized`.
      key: likewise.
    """
    maps = explain(params)
    others = (explain(other) for other in randomized(params, groups, key=key))
    return jnp.stack([rank_correlation(maps, other) for other in others])


# Where the truth is known.


@jax.jit
def relevance_mass_accuracy(
    maps: Float[Array, "batch latents height width"],
    truth: Bool[Array, "batch #latents height width"],
) -> Float[Array, "batch latents"]:
    """The share of the map's mass, sum |map|, that lies where the truth does.

    Arras et al. (Information Fusion 2022), equation 1. 0 for an empty map.
    """
    mass = jnp.abs(maps)
    return _ratio((mass * truth).sum(axis=(2, 3)), mass.sum(axis=(2, 3)))


@jax.jit
def relevance_rank_accuracy(
    maps: Float[Array, "batch latents height width"],
    truth: Bool[Array, "batch #latents height width"],
) -> Float[Array, "batch latents"]:
    """The share of the K pixels of largest |map| that are true, K being the number that are.

    Arras et al. (Information Fusion 2022), equation 2. 0 where nothing is true.
    """
    flat = jnp.abs(maps).reshape(*maps.shape[:2], -1)
    truth = jnp.broadcast_to(truth, maps.shape).reshape(flat.shape)
    order = jnp.argsort(flat, axis=2, descending=True)
    count = truth.sum(axis=2)
    top = jnp.arange(flat.shape[2]) < count[..., None]
    hits = jnp.sum(jnp.take_along_axis(truth, order, axis=2) & top, axis=2)
    return _ratio(hits.astype(flat.dtype), count.astype(flat.dtype))


# The table.


@dataclasses.dataclass(frozen=True)
class Probes:
    """What a function does under random masks; for all maps of the same images.

    Attributes:
      squares: masks.
      square_changes: `changes` under them.
      subsets: masks.
      subset_changes: `changes` under them.
      change: z(x) - z(x').
    """

    squares: Bool[Array, "batch squares height width"]
    square_changes: Float[Array, "batch squares latents"]
    subsets: Bool[Array, "batch subsets height width"]
    subset_changes: Float[Array, "batch subsets latents"]
    change: Float[Array, "batch latents"]


def probe(
    fn: Callable[[Array], Array],
    images: Float[Array, "batch height width c"],
    baselines: Float[Array, "batch height width c"],
    *,
    key: Key[Array, ""],
    squares: int = 96,
    subsets: int = 96,
    batch_size: int = 256,
) -> Probes:
    """Draws masks and evaluates the function under them.

    Args:
      fn: see the module.
      images: x.
      baselines: x'.
      key: of the masks.
      squares: how many `random_squares` per image.
      subsets: how many `random_subsets` per image, perhaps none.
      batch_size: see `changes`.
    """
    square_key, subset_key = jax.random.split(key)
    size = images.shape[1:3]
    square_masks = random_squares(square_key, len(images), size, count=squares)
    subset_masks = random_subsets(subset_key, len(images), size, count=subsets)
    everything = jnp.ones((len(images), 1, *size), bool)
    masks = jnp.concatenate([square_masks, subset_masks, everything], axis=1)
    found = changes(fn, images, baselines, masks, batch_size=batch_size)
    ends = (squares, squares + subsets)
    square_changes, subset_changes, change = jnp.split(found, ends, axis=1)
    return Probes(square_masks, square_changes, subset_masks, subset_changes, change[:, 0])


def measure(
    fn: Callable[[Array], Array],
    maps: Float[Array, "maps latents h w"],
    images: Float[Array, "batch height width c"],
    baselines: Float[Array, "batch height width c"],
    *,
    key: Key[Array, ""],
    probes: Probes | None = None,
    explain: Callable[[Array], Array] | None = None,
    radius: float = 0.02,
    num_curves: int | None = None,
    batch_size: int = 256,
) -> dict[str, float]:
    """Is the map true of its latent? Every measure, as a mean over images and latents.

    Restrict fn and maps to the latents in use: what never changes cannot be explained.

    Args:
      fn: from images to (batch, latents); see the module.
      maps: of every latent; see the module for maps without a sign.
      images: x.
      baselines: x'.
      key: of all that is random.
      probes: `probe` of the same function and images, to share it among maps.
      explain: from images to their maps, for `max_sensitivity`; None leaves that out.
      radius: of its ten perturbations, which are uniform in [-radius, radius].
      num_curves: of how many images, the first, `deletion` and `insertion` are measured, which
        cost most; None is all.
      batch_size: see `changes`.

    Returns:
      `correlation` over squares, and how well the *other* latents' maps do; the same over subsets;
      `which_latent` and its chance; `infidelity` over squares, scaled and relative; the areas of
      `deletion` (lower is better) and `insertion` (higher is better); `completeness_error`;
      `likeness`; and `max_sensitivity`.

    Raises:
      ValueError: if the maps do not fit the images or the function.
    """
    _check_sizes(maps, images)
    mask_key, noise_key = jax.random.split(key)
    if probes is None:
        probes = probe(fn, images, baselines, key=mask_key, batch_size=batch_size)
    if maps.shape[1] != probes.change.shape[1]:
        raise ValueError(
            f"there are maps of {maps.shape[1]} latents, and the function has "
            f"{probes.change.shape[1]}."
        )
    few = (maps[:num_curves], images[:num_curves], baselines[:num_curves])
    curves = {
        name: area(curve(fn, *few, batch_size=batch_size))
        for name, curve in (("deletion", deletion), ("insertion", insertion))
    }
    values = _measures(maps, *dataclasses.astuple(probes)) | curves
    if explain is not None:
        shape = (10, *images.shape)
        noise = jax.random.uniform(noise_key, shape, images.dtype, -radius, radius)
        values["max_sensitivity"] = max_sensitivity(explain, images, noise)
    return {name: float(value.mean()) for name, value in values.items()}


@jax.jit
def _measures(maps, squares, square_changes, subsets, subset_changes, change) -> dict[str, Array]:
    direction = jnp.where((maps < 0).any() | (change >= 0), 1, -1).astype(change.dtype)
    change = change * direction
    actual = square_changes * direction[:, None]
    predicted = sums(maps, squares)
    own = correlation(predicted, actual)
    matrix = correlation_matrix(predicted, actual)
    others = (matrix.sum(axis=2) - own) / max(maps.shape[1] - 1, 1)
    of_subsets = {}
    if subsets.shape[1]:
        found = correlation(sums(maps, subsets), subset_changes * direction[:, None])
        of_subsets["correlation_subsets"] = found
    return {
        "correlation": own,
        "correlation_of_others": others,
        **of_subsets,
        "which_latent": which_latent(predicted, actual),
        "which_latent_chance": jnp.asarray(1 / maps.shape[1]),
        "infidelity": infidelity(predicted, actual, scaled=True, relative=True),
        "completeness_error": completeness_error(maps, change),
        "likeness": likeness(maps),
    }


def _check_sizes(maps: Array, images: Array) -> None:
    if maps.shape[2:] != images.shape[1:3] or len(maps) != len(images):
        raise ValueError(
            f"maps of shape {maps.shape} do not fit images of shape {images.shape}: "
            "they are (batch, latents, height, width) and (batch, height, width, channels)."
        )


def format_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """A table to print, of what `measure` returned for each of several maps.

    Args:
      rows: from a map's name to its measures.
    """
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    first = max(map(len, rows), default=0)
    lines = [" " * first + "".join(f"  {name}" for name in names)]
    for title, row in rows.items():
        cells = (f"{row[n]:.3f}" if n in row else "" for n in names)
        lines.append(
            title.ljust(first)
            + "".join(f"  {cell:>{len(n)}}" for n, cell in zip(names, cells, strict=True))
        )
    return "\n".join(lines)
