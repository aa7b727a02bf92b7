"""Measures of faithfulness, on linear models whose true maps are known, and by plain loops."""

import ast
import inspect
import pathlib
import re
import types

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx

from vae_attn import attributions, faithfulness

BATCH, SIDE, LATENTS, COUNT = 3, 6, 4, 20
KEY = jax.random.key(0)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


IMAGES, BASELINES = normal(0, BATCH, SIDE, SIDE, 2), normal(1, BATCH, SIDE, SIDE, 2)
MATRIX = normal(2, SIDE * SIDE * 2, LATENTS)
MAPS = normal(3, BATCH, LATENTS, SIDE, SIDE)
PREDICTED, ACTUAL = normal(4, BATCH, COUNT, LATENTS), normal(5, BATCH, COUNT, LATENTS)


def linear(x):
    return x.reshape(x.shape[0], -1) @ MATRIX


def true_maps(images=IMAGES, baselines=BASELINES):
    weights = MATRIX.T.reshape(1, LATENTS, SIDE, SIDE, 2)
    return (weights * (images - baselines)[:, None]).sum(axis=-1)


def squares(count=COUNT):
    return faithfulness.random_squares(KEY, BATCH, (SIDE, SIDE), count=count, sides=(2, 4))


def test_random_squares_are_squares_anywhere():
    masks = np.asarray(faithfulness.random_squares(KEY, 2, (9, 12), count=1000, sides=(2, 4)))
    assert masks.shape == (2, 1000, 9, 12)
    seen = set()
    for mask in masks.reshape(-1, 9, 12):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        assert len(rows) == len(columns) == np.ptp(rows) + 1 == np.ptp(columns) + 1
        assert mask.sum() == len(rows) ** 2
        seen.add((len(rows), rows[0], columns[0]))
    assert {side for side, *_ in seen} == {2, 3, 4}
    assert {(row, column) for side, row, column in seen if side == 4} == {
        (row, column) for row in range(6) for column in range(9)
    }
    sides = faithfulness.random_squares(KEY, 1, (128, 200), count=500).any(axis=3).sum(axis=2)
    assert (int(sides.min()), int(sides.max())) == (12, 48)


def test_random_subsets_have_one_size():
    masks = np.asarray(faithfulness.random_subsets(KEY, 2, (5, 8), count=400, share=0.2))
    assert masks.shape == (2, 400, 5, 8)
    assert (masks.sum(axis=(2, 3)) == 8).all()
    np.testing.assert_allclose(masks.mean(axis=(0, 1)), 0.2, atol=0.06)
    assert not (masks[0] == masks[1]).all()


@pytest.mark.parametrize("batch_size", [1, 7, 63, 1000])
def test_changes_by_a_loop(batch_size):
    masks = squares()
    found = faithfulness.changes(linear, IMAGES, BASELINES, masks, batch_size=batch_size)
    for b in range(BATCH):
        for n in (0, 7, COUNT - 1):
            x = np.where(np.asarray(masks[b, n])[..., None], BASELINES[b], IMAGES[b])
            expected = (np.asarray(IMAGES[b]) - x).reshape(-1) @ np.asarray(MATRIX)
            np.testing.assert_allclose(found[b, n], expected, rtol=1e-3, atol=1e-4)


def test_a_pytree_is_compiled_once_for_all_weights():
    traced = []

    def apply(matrix, x):
        traced.append(None)
        return x.reshape(x.shape[0], -1) @ matrix

    for factor in (1.0, 2.0):
        fn = jax.tree_util.Partial(apply, factor * MATRIX)
        found = faithfulness.changes(fn, IMAGES, BASELINES, squares())
        expected = factor * faithfulness.sums(true_maps(), squares())
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert len(traced) == 1


def test_correlation_is_pearsons():
    found = faithfulness.correlation(PREDICTED, ACTUAL)
    matrix = faithfulness.correlation_matrix(PREDICTED, ACTUAL)
    for b in range(BATCH):
        for i in range(LATENTS):
            for j in range(LATENTS):
                r = scipy.stats.pearsonr(ACTUAL[b, :, i], PREDICTED[b, :, j]).statistic
                np.testing.assert_allclose(matrix[b, i, j], r, rtol=1e-4, atol=1e-6)
            np.testing.assert_allclose(found[b, i], matrix[b, i, i], rtol=1e-4, atol=1e-6)
    constant = jnp.full_like(ACTUAL, 0.1)
    assert not faithfulness.correlation(PREDICTED, constant).any()


def test_which_latent_by_hand():
    mixed = jnp.stack([ACTUAL[..., 0], ACTUAL[..., 2], ACTUAL[..., 1], PREDICTED[..., 3]], axis=2)
    found = np.asarray(faithfulness.which_latent(mixed, ACTUAL))
    assert (found[:, 0] == 1).all()
    assert (found[:, 1:3] == 0).all()
    one_for_all = jnp.broadcast_to(PREDICTED[..., :1], PREDICTED.shape)
    chance = faithfulness.which_latent(one_for_all, ACTUAL)
    np.testing.assert_allclose(chance, 1 / LATENTS)


def test_infidelity_by_its_formula():
    p, a = np.asarray(PREDICTED, np.float64), np.asarray(ACTUAL, np.float64)
    np.testing.assert_allclose(
        faithfulness.infidelity(PREDICTED, ACTUAL), ((p - a) ** 2).mean(axis=1), rtol=1e-5
    )
    # The best scale: no other does better.
    found = faithfulness.infidelity(PREDICTED, ACTUAL, scaled=True, relative=True)
    tried = [((c * p - a) ** 2).mean(1) / (a**2).mean(1) for c in np.linspace(-1, 1, 2001)]
    np.testing.assert_allclose(found, np.min(tried, axis=0), rtol=1e-4)
    nothing = faithfulness.infidelity(0 * PREDICTED, ACTUAL, scaled=True, relative=True)
    np.testing.assert_allclose(nothing, 1)


def test_completeness_error_by_hand():
    change = linear(IMAGES) - linear(BASELINES)
    maps = true_maps().at[:, 0, 2, 3].add(0.5)
    found = np.asarray(faithfulness.completeness_error(maps, change))
    np.testing.assert_allclose(found[:, 0], 0.5 / np.abs(change[:, 0]).mean(), rtol=1e-4)
    np.testing.assert_allclose(found[:, 1:], 0, atol=1e-5)


def test_order_of_a_map_without_a_sign_is_by_value():
    maps = jnp.abs(MAPS)
    order = np.asarray(faithfulness.deletion_order(maps)).reshape(-1, SIDE**2)
    for places, flat in zip(order, np.asarray(maps).reshape(-1, SIDE**2), strict=True):
        np.testing.assert_array_equal(np.argsort(places), np.argsort(-flat))


@pytest.mark.parametrize("sign", [1, -1])
def test_order_of_a_signed_map_by_hand(sign):
    """The sum is 4: 5 undoes it at once; then 2 against -3, 1 against -1, and last what is 0."""
    flat = np.array([0.0, 2, -3, 5, 1, -1]) * sign
    order = faithfulness.deletion_order(jnp.asarray(flat.reshape(1, 1, 2, 3), jnp.float32))
    sequence = flat[np.argsort(np.asarray(order).reshape(-1))] * sign
    assert sequence[0] == 5
    assert set(sequence[1:3]) == {2, -3}
    assert set(sequence[3:5]) == {1, -1}
    assert sequence[5] == 0


SHARES = (0.0, 0.25, 0.5, 1.0)


def test_curves_by_a_loop_and_true_maps_are_best():
    maps = true_maps()
    left = faithfulness.deletion(linear, maps, IMAGES, BASELINES, shares=SHARES)
    reached = faithfulness.insertion(linear, maps, IMAGES, BASELINES, shares=SHARES)
    order = np.asarray(faithfulness.deletion_order(maps))
    for i in range(LATENTS):
        contributions = np.asarray(maps[:, i], np.float64)
        whole = np.abs(contributions.sum(axis=(1, 2))).sum()
        for n, share in enumerate(SHARES):
            gone = (contributions * (order[:, i] < share * SIDE**2)).sum(axis=(1, 2))
            distance = np.abs(contributions.sum(axis=(1, 2)) - gone).sum()
            np.testing.assert_allclose(left[i, n], distance / whole, rtol=1e-3, atol=1e-4)
            # Of a linear function, what is put in is what was taken out.
            np.testing.assert_allclose(reached[i, n], 1 - distance / whole, rtol=1e-3, atol=1e-4)
    area = faithfulness.area(left, SHARES)
    np.testing.assert_allclose(area, np.trapezoid(left, SHARES, axis=1), rtol=1e-5)
    for others in (MAPS, jnp.abs(maps), maps[:, ::-1]):
        worse = faithfulness.deletion(linear, others, IMAGES, BASELINES, shares=SHARES)
        assert (area < faithfulness.area(worse, SHARES)).all()


def test_likeness_is_the_mean_correlation_of_pairs():
    found = faithfulness.likeness(MAPS)
    for b in range(BATCH):
        matrix = np.corrcoef(np.asarray(MAPS[b]).reshape(LATENTS, -1))
        expected = matrix[~np.eye(LATENTS, dtype=bool)].mean()
        np.testing.assert_allclose(found[b], expected, rtol=1e-3, atol=1e-5)
    same = jnp.broadcast_to(MAPS[:, :1], MAPS.shape)
    np.testing.assert_allclose(faithfulness.likeness(same), 1, rtol=1e-5)
    assert not faithfulness.likeness(MAPS[:, :1]).any()


def test_rank_correlation_is_spearmans():
    first, second = jnp.maximum(MAPS, 0), MAPS**2 + 0.5 * normal(6, *MAPS.shape)
    found = faithfulness.rank_correlation(first, second)
    for b in range(BATCH):
        for i in range(LATENTS):
            pair = (np.asarray(m[b, i]).reshape(-1) for m in (first, second))
            expected = scipy.stats.spearmanr(*pair).statistic
            np.testing.assert_allclose(found[b, i], expected, rtol=1e-3, atol=1e-5)


def test_max_sensitivity_of_a_linear_explanation():
    perturbations = 0.1 * normal(7, 5, *IMAGES.shape)

    def explain(x):
        return true_maps(x)

    found = np.asarray(faithfulness.max_sensitivity(explain, IMAGES, perturbations))
    for b in range(BATCH):
        for i in range(LATENTS):
            maps = np.asarray(true_maps())[b, i]
            moved = [np.asarray(true_maps(IMAGES + e))[b, i] - maps for e in perturbations]
            expected = max(np.linalg.norm(m) for m in moved) / np.linalg.norm(maps)
            np.testing.assert_allclose(found[b, i], expected, rtol=1e-4)


PARAMS = {"conv": {"kernel": normal(8, 2, 3)}, "mean": {"kernel": MATRIX, "bias": normal(9, 4)}}


def test_weights_are_shuffled_from_the_head_down():
    steps = list(faithfulness.randomized(PARAMS, ["mean", "conv/kernel"], key=KEY))
    first, second = steps
    np.testing.assert_array_equal(first["conv"]["kernel"], PARAMS["conv"]["kernel"])
    assert (second["conv"]["kernel"] != PARAMS["conv"]["kernel"]).any()
    for name in ("kernel", "bias"):
        found, old = (np.asarray(p["mean"][name]).reshape(-1) for p in (first, PARAMS))
        assert (found != old).any()
        np.testing.assert_array_equal(np.sort(found), np.sort(old))
        np.testing.assert_array_equal(second["mean"][name], first["mean"][name])
    with pytest.raises(ValueError, match="no weight has 'con' in its path"):
        list(faithfulness.randomized(PARAMS, ["con"], key=KEY))


def test_randomization_tells_maps_that_depend_on_the_weights():
    def explain(params):
        weights = params["mean"]["kernel"].T.reshape(1, LATENTS, SIDE, SIDE, 2)
        return (weights * (IMAGES - BASELINES)[:, None]).sum(axis=-1)

    groups = ["conv", "mean"]
    found = faithfulness.randomization(explain, PARAMS, groups, key=KEY)
    assert found.shape == (2, BATCH, LATENTS)
    np.testing.assert_allclose(found[0], 1, rtol=1e-5)  # it does not use the convolution
    assert float(jnp.abs(found[1]).mean()) < 0.3
    blind = faithfulness.randomization(lambda _: MAPS, PARAMS, groups, key=KEY)
    np.testing.assert_allclose(blind, 1, rtol=1e-5)


def test_where_the_truth_is_known_by_hand():
    maps = jnp.array([[[[4.0, -3.0], [2.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]]])
    truth = jnp.array([[[[True, False], [True, False]]]])
    mass = faithfulness.relevance_mass_accuracy(maps, truth)
    np.testing.assert_allclose(mass, [[0.6, 0.0]])
    ranks = faithfulness.relevance_rank_accuracy(maps, truth)
    np.testing.assert_allclose(ranks[0, 0], 0.5)  # of 4 and -3, one is true
    of_each = jnp.array([[[[True, True], [False, False]], [[False] * 2] * 2]])
    np.testing.assert_allclose(faithfulness.relevance_rank_accuracy(maps, of_each), [[1.0, 0.0]])


def test_the_table_of_true_maps():
    table = faithfulness.measure(linear, true_maps(), IMAGES, BASELINES, key=KEY, explain=true_maps)
    assert table["correlation"] == pytest.approx(1, abs=1e-4)
    assert table["correlation_subsets"] == pytest.approx(1, abs=1e-4)
    assert table["which_latent"] == 1
    assert table["which_latent_chance"] == 1 / LATENTS
    assert table["infidelity"] == pytest.approx(0, abs=1e-5)
    assert table["completeness_error"] == pytest.approx(0, abs=1e-4)
    assert abs(table["correlation_of_others"]) < 0.3
    assert abs(table["likeness"]) < 0.3
    assert table["deletion"] < 0.2 < 0.8 < table["insertion"]
    assert 0 < table["max_sensitivity"] < 0.1
    text = faithfulness.format_table({"true": table, "short": {"correlation": 0.5}})
    lines = text.splitlines()
    assert len({len(lines[0]), len(lines[1])}) == 1
    assert lines[2].split() == ["short", "0.500"]


def test_the_table_of_maps_without_a_sign():
    """They are compared with the change towards the baseline, whatever its direction."""
    probes = faithfulness.probe(linear, IMAGES, BASELINES, key=KEY)
    change = np.asarray(probes.change)
    assert (change > 0).any()
    assert (change < 0).any()
    maps = jnp.abs(true_maps())
    table = faithfulness.measure(linear, maps, IMAGES, BASELINES, key=KEY, probes=probes)
    towards = probes.square_changes * jnp.sign(probes.change)[:, None]
    expected = faithfulness.correlation(faithfulness.sums(maps, probes.squares), towards).mean()
    assert table["correlation"] == pytest.approx(float(expected), abs=1e-5)
    # Where all pixels pull one way, a map with and one without a sign say the same.
    images = BASELINES + jnp.abs(IMAGES) * jnp.sign(MATRIX[:, 0]).reshape(1, SIDE, SIDE, 2)
    for fn in (lambda x: linear(x)[:, :1], lambda x: -linear(x)[:, :1]):
        maps = jnp.abs(true_maps(images)[:, :1])
        table = faithfulness.measure(fn, maps, images, BASELINES, key=KEY)
        assert table["correlation"] == pytest.approx(1, abs=1e-4)
        assert table["completeness_error"] == pytest.approx(0, abs=1e-4)


class EquinoxVAE(eqx.Module):
    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP

    def __init__(self, key):
        first, second = jax.random.split(key)
        self.encoder = eqx.nn.MLP(36, LATENTS, 16, 1, key=first)
        self.decoder = eqx.nn.MLP(LATENTS, 36, 16, 1, key=second)

    def mean(self, images):
        return jax.vmap(self.encoder)(images.reshape(len(images), -1))

    def reconstruct(self, images):
        return jax.vmap(self.decoder)(self.mean(images)).reshape(images.shape)


def test_an_equinox_model_gets_the_table_in_ten_lines():
    vae, images = EquinoxVAE(jax.random.key(1)), normal(10, 5, SIDE, SIDE, 1)

    maps = eqx.filter_jit(attributions.deeplift)(vae.mean, images, vae.reconstruct(images))
    maps = maps.sum(axis=-1)
    table = faithfulness.measure(
        vae.mean, maps, images, vae.reconstruct(images), key=jax.random.key(0)
    )
    print(faithfulness.format_table({"deeplift": table}))

    assert table["which_latent"] > 0.8
    assert table["correlation"] > 0.7
    arrays, static = eqx.partition(vae, eqx.is_array)
    attribute = attributions.make_attribution_fn(
        latents=lambda arrays, x: eqx.combine(arrays, static).mean(x)
    )
    found = attribute(arrays, images, vae.reconstruct(images))
    np.testing.assert_allclose(found, maps, rtol=1e-4, atol=1e-6)


class NnxVAE(nnx.Module):
    def __init__(self, rngs):
        self.hidden, self.codes = nnx.Linear(36, 16, rngs=rngs), nnx.Linear(16, LATENTS, rngs=rngs)
        self.pixels = nnx.Linear(LATENTS, 36, rngs=rngs)

    def mean(self, images):
        return self.codes(nnx.relu(self.hidden(images.reshape(len(images), -1))))

    def reconstruct(self, images):
        return self.pixels(self.mean(images)).reshape(images.shape)


def plain_vae():
    first, second = normal(11, 36, LATENTS), 0.2 * normal(12, LATENTS, 36)

    def mean(images):
        return jnp.tanh(0.2 * images.reshape(len(images), -1) @ first)

    return types.SimpleNamespace(
        mean=mean, reconstruct=lambda images: (mean(images) @ second).reshape(images.shape)
    )


@pytest.mark.parametrize(
    "make", [lambda: EquinoxVAE(jax.random.key(1)), lambda: NnxVAE(nnx.Rngs(0)), plain_vae]
)
def test_the_table_of_the_docs(make, capsys):
    """The code in docs/faithfulness.md, as it stands there, with somebody's VAE and images."""
    path = pathlib.Path(__file__).resolve().parents[1] / "docs" / "faithfulness.md"
    (code,) = re.findall(r"```python\n(.*?)```", path.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code.splitlines()) <= 12
    exec(code, {"vae": make(), "images": normal(10, 5, SIDE, SIDE, 1)})
    header, exact, plain = capsys.readouterr().out.strip("\n").splitlines()
    column = header.split().index("which_latent")
    assert exact.startswith("deeplift")
    assert float(exact.split()[1 + column]) > 0.8
    assert float(plain.split()[2 + column]) == pytest.approx(1 / LATENTS, abs=1e-3)


def test_mistakes():
    with pytest.raises(ValueError, match=r"maps of shape \(3, 4, 6, 3\) do not fit images"):
        faithfulness.measure(linear, MAPS[..., :3], IMAGES, BASELINES, key=KEY)
    with pytest.raises(ValueError, match="maps of 3 latents, and the function has 4"):
        faithfulness.measure(linear, MAPS[:, :3], IMAGES, BASELINES, key=KEY)
    with pytest.raises(ValueError, match=r"must return \(batch, latents\)"):
        faithfulness.changes(lambda x: x, IMAGES, BASELINES, squares())


def test_the_measures_import_jax_alone():
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(inspect.getsource(faithfulness)))
        if isinstance(node, ast.Import | ast.ImportFrom)
    }
    assert imported == {"collections", "dataclasses", "functools", "jax", "jaxtyping", "typing"}
