"""How much of a map lies where its factor is: a linear model's by closed forms."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from vae_attn.config import default_config
from vae_attn.data import dsprites, dsprites_renderer
from vae_attn.data.factor_grid import FactorData, FactorGrid
from vae_attn.experiments.disentanglement import factor_maps
from vae_attn.experiments.maps import Mapper
from vae_attn.models.adaptor import Adaptor

HEIGHT, WIDTH = 6, 8
TOP, BOTTOM = 1, 4  # rows in which one pixel is bright
GRID = FactorGrid(("colour", "top", "bottom"), ((1.0,), (0, 1, 2, 3), (0, 1, 2)))


def grid_images():
    images = np.zeros((12, HEIGHT, WIDTH, 1), np.uint8)
    for n, (_, top, bottom) in enumerate(GRID.classes(np.arange(12))):
        images[n, TOP, 2 * top] = images[n, BOTTOM, 2 * bottom] = 255
    return images


DATA = FactorData("bright pixels", GRID, grid_images())


def weights():
    """Latent 0 reads the bottom row, 1 nothing, 2 the top row; both leak into other pixels."""
    rng = np.random.default_rng(0)
    matrix = 0.05 * rng.uniform(0.5, 1, (HEIGHT, WIDTH, 3)) * rng.choice([-1, 1], (1, 1, 3))
    matrix[..., 1] = 0
    matrix[BOTTOM, :, 0] = np.linspace(1, 3, WIDTH)
    matrix[TOP, :, 2] = np.linspace(-2, 2.5, WIDTH)
    return matrix.astype(np.float32)


class Linear(nn.Module):
    """z = x W; whatever z is, the picture is grey, so that |x - x'| is 1/2 everywhere."""

    layers = ("pixels",)

    def features(self, images, layer, *, train=False):
        return images

    def head(self, features, layer, *, train=False):
        mean = features.reshape(features.shape[0], -1) @ weights().reshape(-1, 3)
        return mean, jnp.zeros_like(mean)

    def decode(self, z, *, train=False):
        return jnp.zeros((z.shape[0], HEIGHT, WIDTH, 1)) + 0 * z.sum()


@pytest.fixture(scope="module")
def mapper():
    model = Adaptor(Linear(), image_shape=(HEIGHT, WIDTH, 1), latents=3, layer="pixels")
    return Mapper(model=model, variables={}, batch_size=5)


def evaluate(mapper, data=DATA, **options):
    config = default_config()
    config.evaluate.points = 100
    config.evaluate.update(options)

    def codes_of(indices):
        return mapper.encode(data.as_uint8(data.stored[indices]))[0]

    return factor_maps.evaluate(config, mapper, data, codes_of, layers=("pixels",))


def where(top, bottom):
    """The pixels of each factor, as one would draw them."""
    masks = np.zeros((2, HEIGHT, WIDTH), bool)
    masks[0, TOP, [2 * c for c in (top - 1, top, top + 1) if 0 <= c < 4]] = True
    masks[1, BOTTOM, [2 * c for c in (bottom - 1, bottom, bottom + 1) if 0 <= c < 3]] = True
    return masks


def test_changed_pixels():
    everything = np.arange(12)
    expected = np.stack([where(*classes[1:]) for classes in GRID.classes(everything)])
    for place, factor in enumerate(GRID.varying):
        found = factor_maps.changed_pixels(DATA, everything, factor)
        np.testing.assert_array_equal(found, expected[:, place])


def test_changed_pixels_of_sprites_are_those_of_neighbours_drawn_anew():
    values = ((1.0,), (1.0, 3.0), (0.5, 1.0), (0.0, 0.7, 1.4), (0.0, 0.5, 1.0), (0.0, 1.0))
    grid = FactorGrid(dsprites.GRID.names, values)
    data = dsprites.load_dsprites(source="rendered", grid=grid)

    def drawn(classes):
        one = tuple((of[c],) for of, c in zip(values, classes, strict=True))
        return np.unpackbits(dsprites_renderer.render(FactorGrid(grid.names, one))).reshape(64, 64)

    indices = np.array([0, 40, 71])
    for factor in grid.varying:
        for found, classes in zip(
            factor_maps.changed_pixels(data, indices, factor), grid.classes(indices), strict=True
        ):
            expected = np.zeros((64, 64), bool)
            for c in (classes[factor] - 1, classes[factor] + 1):
                if 0 <= c < grid.sizes[factor]:
                    moved = classes.copy()
                    moved[factor] = c
                    expected |= drawn(moved) != drawn(classes)
            np.testing.assert_array_equal(found, expected)
            assert found.any()


def test_a_linear_model_by_its_closed_form(mapper):
    found = evaluate(mapper)
    strength = np.abs(weights())[..., [2, 0]]  # of the latents of top and bottom
    masks = np.stack([where(*classes[1:]) for classes in GRID.classes(np.arange(12))])
    for k, name in enumerate(("top", "bottom")):
        flat = strength[..., k].ravel()
        mass, rank, share = [], [], []
        for mask in masks[:, k]:
            mass.append(flat[mask.ravel()].sum() / flat.sum())
            share.append(mask.mean())
            rank.append(mask.ravel()[np.argsort(-flat)[: mask.sum()]].mean())
        for style in ("deeplift", "integrated_gradients"):
            prefix = f"faithfulness/{style}/image"
            assert found[f"{prefix}/factor_mass_{name}"] == pytest.approx(np.mean(mass), rel=1e-4)
            assert found[f"{prefix}/factor_rank_{name}"] == pytest.approx(np.mean(rank), rel=1e-4)
        chance = found[f"faithfulness/chance/image/factor_mass_{name}"]
        assert chance == pytest.approx(np.mean(share), rel=1e-5)
        # |x - x'| is the same everywhere.
        difference = found[f"faithfulness/difference/image/factor_mass_{name}"]
        assert difference == pytest.approx(chance, rel=1e-4)
        random = found[f"faithfulness/random/image/factor_mass_{name}"]
        assert random == pytest.approx(chance, rel=0.5)
    both = [found[f"faithfulness/deeplift/image/factor_mass_{name}"] for name in ("top", "bottom")]
    assert found["faithfulness/deeplift/image/factor_mass"] == pytest.approx(np.mean(both))
    styles = {key.split("/")[1] for key in found}
    published = {"paper", "contrast", "contrast_signed"}
    known = {"deeplift", "integrated_gradients", "difference", "random", "chance"}
    assert styles == published | known


def test_a_factor_that_changes_no_pixel_is_left_out(mapper):
    grid = FactorGrid((*GRID.names, "hidden"), (*GRID.values, (0, 1)))
    data = FactorData("bright pixels", grid, np.repeat(grid_images(), 2, axis=0))
    found = evaluate(mapper, data, styles=("paper",))
    assert not any("hidden" in key for key in found)
    expected = evaluate(mapper, styles=("paper",))["faithfulness/deeplift/image/factor_mass"]
    assert found["faithfulness/deeplift/image/factor_mass"] == pytest.approx(expected, rel=1e-4)


def test_the_sample_is_bounded(mapper, monkeypatch):
    counts, changed = set(), factor_maps.changed_pixels

    def counted(data, indices, factor):
        counts.add(len(indices))
        return changed(data, indices, factor)

    monkeypatch.setattr(factor_maps, "changed_pixels", counted)
    assert evaluate(mapper, faithful_images=3, styles=("paper",))
    assert evaluate(mapper, max_images=2, styles=("paper",))
    assert counts == {2, 3}
    assert evaluate(mapper, faithful_images=0) == {}


def test_the_table(mapper):
    scores = evaluate(mapper, faithful_images=2)
    (table,) = factor_maps.table(scores | {f"{key}_std": 0.0 for key in scores})
    assert table.rows[0] == ["style", "layer", "mass", "rank", "top", "bottom"]
    masses = [float(row[2].split()[0]) for row in table.rows[1:]]
    assert masses == sorted(masses, reverse=True)
    assert len(table.rows) == 1 + 8
    (chance,) = [row for row in table.rows if row[0] == "chance"]
    value = scores["faithfulness/chance/image/factor_mass_top"]
    assert chance[4] == f"{value:.3f} ± 0.000"
    assert factor_maps.table({"mig": 0.5}) == []


def test_latents_are_matched_by_information():
    rng = np.random.default_rng(1)
    factors = rng.integers(0, 4, (500, 2))
    codes = np.stack([rng.normal(size=500), factors[:, 1], factors[:, 0] + 0.1], axis=1)
    assert factor_maps.best_latents(codes, factors).tolist() == [2, 1]
