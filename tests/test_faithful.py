"""Exact maps of a trained VAE's latents, and a run's measures of which maps are true."""

import logging

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from vae_attn import attributions, faithfulness
from vae_attn.config import default_config
from vae_attn.errors import UserError
from vae_attn.experiments import faithful, validation
from vae_attn.experiments.anomaly import summary
from vae_attn.experiments.map_functions import INTEGRATION_STEPS, NormalLatents
from vae_attn.experiments.maps import Mapper
from vae_attn.models.adaptor import Adaptor

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (6, 28, 28, 1), dtype=np.uint8)
COUNTERPARTS = RNG.uniform(0, 1, IMAGES.shape).astype(np.float32)
LATENTS = np.array([[2, 0], [1, 3], [3, 2], [0, 1], [2, 3], [1, 0]])
LAYERS = ("conv1", "conv2")


def mapper_of(model, **options):
    image, noise = jnp.zeros((1, 28, 28, 1)), jnp.zeros((1, 4))
    variables = jax.jit(model.init)(jax.random.key(0), image, noise)
    variables = jax.tree.map(lambda x: 2 * x, variables)  # so that all latents are in use
    normal = NormalLatents(np.full(4, 0.1, np.float32), np.ones(4, np.float32))
    return Mapper(model=model, variables=variables, normal=normal, batch_size=4, **options)


@pytest.fixture(scope="module")
def mapper():
    """Of a model with random weights, in batches that the images do not fill."""
    return mapper_of(small_models.deep_digits(latents=4, image_shape=(28, 28, 1)))


def chosen_means(mapper, x, latents):
    mean, _ = mapper.model.apply(mapper.variables, jnp.asarray(x), method="encode")
    return np.take_along_axis(np.asarray(mean), latents, axis=1)


def check_sums(mapper, exact, tolerance):
    z = chosen_means(mapper, IMAGES / np.float32(255), LATENTS)
    z_counterpart = chosen_means(mapper, COUNTERPARTS, LATENTS)
    np.testing.assert_allclose(exact.z, z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(exact.z_counterpart, z_counterpart, rtol=1e-4, atol=1e-5)
    change = z - z_counterpart
    np.testing.assert_allclose(exact.sums, change, atol=tolerance * np.abs(change).max())


def test_exact_maps_add_up_to_the_change_of_their_latents(mapper):
    exact = mapper.exact_maps(IMAGES, COUNTERPARTS, LATENTS)
    assert exact.maps.shape == (6, 2, 28, 28)
    check_sums(mapper, exact, 1e-4)
    # Each image's own latents are those that it would have among all.
    expected = attributions.deeplift(
        lambda x: mapper.model.apply(mapper.variables, x, method="encode")[0],
        jnp.asarray(IMAGES[4:5] / np.float32(255)),
        jnp.asarray(COUNTERPARTS[4:5]),
    )
    np.testing.assert_allclose(
        exact.maps[4], np.asarray(expected)[0, LATENTS[4], ..., 0], rtol=1e-3, atol=1e-6
    )


def test_integrated_gradients_step_by_step_are_those_at_once(mapper):
    found = mapper.exact_maps(IMAGES, COUNTERPARTS, LATENTS, style="integrated_gradients")
    expected = attributions.integrated_gradients(
        lambda x: mapper.model.apply(mapper.variables, x, method="encode")[0],
        jnp.asarray(IMAGES / np.float32(255)),
        jnp.asarray(COUNTERPARTS),
        steps=INTEGRATION_STEPS,
    )[..., 0]
    of_each = np.take_along_axis(np.asarray(expected), LATENTS[..., None, None], axis=1)
    np.testing.assert_allclose(found.maps, of_each, rtol=1e-3, atol=1e-5)
    check_sums(mapper, found, 0.05)


def test_the_images_deviation_is_taken_apart(mapper):
    maps = mapper.deviation_maps(IMAGES, COUNTERPARTS)

    def deviation(x):
        mean, logvar = mapper.model.apply(mapper.variables, jnp.asarray(x), method="encode")
        return np.asarray((mean - 0.1) ** 2 / (jnp.exp(logvar) + 1)).sum(axis=1)

    change = deviation(IMAGES / np.float32(255)) - deviation(COUNTERPARTS)
    np.testing.assert_allclose(maps.sum(axis=(1, 2)), change, rtol=1e-3, atol=1e-4)
    found = mapper.image_scores(IMAGES)["standardised_deviation"]
    np.testing.assert_allclose(found, deviation(IMAGES / np.float32(255)), rtol=1e-4)


def test_replacing_pixels(mapper):
    exact, shares = mapper.exact_maps(IMAGES, COUNTERPARTS, LATENTS), (0.0, 0.1, 0.5, 1.0)
    order, z = mapper.replacing(IMAGES, COUNTERPARTS, exact, shares=shares)
    np.testing.assert_array_equal(order, faithfulness.deletion_order(jnp.asarray(exact.maps)))
    x = IMAGES / np.float32(255)
    for place in range(2):
        for number, share in enumerate(shares):
            gone = (order[:, place] < round(share * 28 * 28))[..., None]
            expected = chosen_means(mapper, np.where(gone, COUNTERPARTS, x), LATENTS)[:, place]
            np.testing.assert_allclose(z[:, place, number], expected, rtol=1e-3, atol=1e-5)


class Cumulative(nn.Module):
    """A model of someone's own, with an operation for which DeepLIFT has no rule."""

    layers = ("conv1",)

    def setup(self):
        self.conv1, self.both = nn.Conv(4, (4, 4), strides=4), nn.Dense(8)
        self.pixels = nn.Dense(28 * 28)

    def features(self, images, layer, *, train=False):
        return self.conv1(images)

    def head(self, features, layer, *, train=False):
        flat = features.reshape(features.shape[0], -1)
        codes = self.both(jax.lax.cumlogsumexp(flat, axis=1) / 10)
        return codes[:, :4], codes[:, 4:]

    def decode(self, z, *, train=False):
        return self.pixels(z).reshape(-1, 28, 28, 1)


def test_a_model_without_rules_is_told_once_and_integrated(caplog):
    model = Adaptor(Cumulative(), image_shape=(28, 28, 1), latents=4, layer="conv1")
    other = mapper_of(model)
    caplog.set_level(logging.INFO, "vae_attn")
    exact = other.exact_maps(IMAGES, COUNTERPARTS, LATENTS)
    other.exact_maps(IMAGES, COUNTERPARTS, LATENTS)
    (message,) = caplog.messages
    assert message.startswith("DeepLIFT has no rule for the operation 'cumlogsumexp'")
    check_sums(other, exact, 0.1)
    assert other.deviation_maps(IMAGES, COUNTERPARTS).shape == (6, 28, 28)


@pytest.fixture(scope="module")
def measured(mapper):
    config = default_config()
    config.evaluate.faithful_images = 5
    return faithful.evaluate(config, mapper, IMAGES, IMAGES, layers=LAYERS)


def test_every_kind_of_map_is_measured(measured):
    styles = ("paper", "contrast", "contrast_signed")
    names = {f"{style}/{layer}" for style in styles for layer in LAYERS}
    exact = {"deeplift/image", "integrated_gradients/image"}
    names |= exact | {"random/image", "difference/image"}
    assert {key.split("/", 1)[1].rsplit("/", 1)[0] for key in measured} == names
    signed = {name for name in names if f"faithfulness/{name}/completeness_error" in measured}
    assert signed == exact
    measures = ("correlation", "correlation_of_others", "which_latent", "which_latent_chance")
    for name in names:
        for measure in (*measures, "infidelity", "deletion", "insertion", "likeness"):
            assert np.isfinite(measured[f"faithfulness/{name}/{measure}"])


def test_exact_maps_are_true_and_one_map_for_all_is_not(measured):
    def value(name, measure):
        return measured[f"faithfulness/{name}/{measure}"]

    assert value("deeplift/image", "completeness_error") < 1e-4
    assert value("deeplift/image", "correlation") > 0.95
    assert value("deeplift/image", "which_latent") > 0.9
    chance = value("difference/image", "which_latent_chance")
    assert chance in (1 / 2, 1 / 4, pytest.approx(1 / 3))
    assert value("difference/image", "which_latent") == pytest.approx(chance, abs=1e-6)
    assert value("difference/image", "likeness") == pytest.approx(1, abs=1e-5)
    assert abs(value("random/image", "likeness")) < 0.05
    for measure, better in (("correlation", 1), ("insertion", 1), ("infidelity", -1)):
        own, other = value("deeplift/image", measure), value("difference/image", measure)
        assert better * own > better * other


def test_measures_are_those_of_all_images_at_once(mapper, measured):
    """Once more by hand, of one kind of map."""
    config = default_config()
    config.evaluate.faithful_images = 5
    images = faithful.sample(config, IMAGES)
    x, counterparts = jnp.asarray(images / np.float32(255)), mapper.counterparts(images)

    chosen = faithful.latents_in_use(*mapper.encode(images))

    def fn(x):
        return mapper.model.apply(mapper.variables, x, method="encode")[0][:, chosen]

    key, _ = jax.random.split(jax.random.key(config.seed))
    expected = faithfulness.measure(
        fn,
        jnp.asarray(mapper.latent_maps(images, style="contrast", layer="conv2")[:, chosen]),
        x,
        jnp.asarray(counterparts),
        key=key,
        probes=faithfulness.probe(fn, x, jnp.asarray(counterparts), key=key, subsets=0),
        num_curves=2,
    )
    for name in ("correlation", "which_latent", "infidelity", "deletion", "insertion", "likeness"):
        found = measured[f"faithfulness/contrast/conv2/{name}"]
        assert found == pytest.approx(expected[name], rel=1e-3, abs=1e-4)


def test_latents_are_in_use_by_the_images_that_were_learned(mapper, monkeypatch):
    """An abnormal image moves every latent away from the prior, a collapsed one too."""
    asked = []

    def encode(self, images):
        mean = np.zeros((len(images), 4), np.float32)
        mean[:, [0, 2]] = 1
        mean[:, 3] = 1.0 if images is IMAGES else 0.1  # then of half a hundredth of a nat
        return mean, np.zeros_like(mean)

    monkeypatch.setattr(Mapper, "encode", encode)
    monkeypatch.setattr(faithful, "measure", lambda *args, **_: asked.append(args[2]) or {})
    faithful.evaluate(default_config(), mapper, IMAGES, IMAGES[:3], layers=LAYERS)
    assert asked.pop().tolist() == [0, 2]


def test_latents_that_are_not_used_are_not_asked(mapper, caplog):
    caplog.set_level(logging.INFO, "vae_attn")
    dead = jax.tree.map(jnp.zeros_like, mapper.variables)
    other = Mapper(model=mapper.model, variables=dead, normal=mapper.normal, batch_size=4)
    assert faithful.evaluate(default_config(), other, IMAGES, IMAGES, layers=LAYERS) == {}
    (message,) = caplog.messages
    assert message == (
        "no latent is in use: whether maps are true of their latents is not measured."
    )
    mean = np.zeros((5, 40), np.float32)
    mean[:, ::2] = np.arange(20) / 10  # of the first the KL is 0, of the second 0.005
    chosen = faithful.latents_in_use(mean, np.zeros_like(mean))
    assert chosen.tolist() == list(range(8, 40, 2))
    assert faithful.latents_in_use(mean[:, :6], np.zeros((5, 6), np.float32)).tolist() == [4]


def test_none_are_measured_where_none_are_wanted(mapper):
    config = default_config()
    config.evaluate.faithful_images = 0
    assert faithful.evaluate(config, mapper, IMAGES, IMAGES, layers=LAYERS) == {}
    config.evaluate.faithful_images = -1
    with pytest.raises(UserError, match=r"evaluate\.faithful_images=-1 must be 0 or more"):
        validation.validate(config)


def test_large_images_are_fewer():
    config = default_config()
    assert len(faithful.sample(config, np.zeros((90, 32, 32, 1), np.uint8))) == 64
    assert len(faithful.sample(config, np.zeros((90, 256, 256, 1), np.uint8))) == 16
    assert len(faithful.sample(config, np.zeros((9, 1024, 1024, 1), np.uint8))) == 8


def test_where_and_why_are_two_tables(measured):
    scores = {"contrast/conv1/pixel_auroc": 0.9} | measured
    where = summary.scores_table(scores)
    assert where.title == "Where is the defect?"
    assert [row[:2] for row in where.rows[1:]] == [["contrast", "conv1"]]
    (why,) = faithful.table(scores)
    assert why.title == "Is the map true of its latent?"
    assert why.rows[1][0] in ("deeplift", "integrated_gradients")  # the most correlated first
    assert len(why.rows) == 1 + 10
    assert all(len(row) == len(why.rows[0]) for row in why.rows)
    assert faithful.table({"contrast/conv1/pixel_auroc": 0.9}) == []


def test_seeds_have_their_means():
    measures = ("correlation", "which_latent", "which_latent_chance")
    scores = {f"faithfulness/paper/conv1/{name}": 0.25 for name in measures}
    scores |= {f"{name}_std": 0.125 for name in scores}
    (table,) = faithful.table(scores)
    assert table.rows[1][:3] == ["paper", "conv1", "0.250 ± 0.125"]
    assert len(table.rows) == 2
    assert faithful.truth_of(scores, "paper/conv1").short == "corr. 0.25, right 25%"
    assert faithful.truth_of(scores, "paper/conv2").sentence == ""
