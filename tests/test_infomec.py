"""InfoMEC against the public code's numbers, a closed form, and an independent computation."""

import json
import pathlib

import numpy as np
import pytest
import scipy.optimize
import scipy.special

from vae_attn.experiments.disentanglement import infomec

PUBLIC = json.loads(
    (pathlib.Path(__file__).parent / "data" / "infomec.json").read_text(encoding="utf-8")
)


def recipe(seed):
    """The codes whose public values are kept: mixed factors, a small latent, one of noise."""
    rng = np.random.default_rng(seed)
    factors = np.stack(np.unravel_index(np.arange(1200) % 60, (3, 4, 5)), axis=1)
    centred = (factors - factors.mean(axis=0)) / factors.std(axis=0)
    mixing = np.array([[1, 0.2, 0, 0.5], [0.3, 1, 0.1, 0], [0, -0.4, 1, 0]])
    codes = np.zeros((1200, 6))
    codes[:, :4] = centred @ mixing + 0.4 * rng.normal(size=(1200, 4))
    codes[:, 4] = 0.01 * rng.normal(size=1200)
    codes[:, 5] = rng.normal(size=1200)
    return factors, codes


@pytest.mark.parametrize("seed", [0, 1])
def test_values_of_the_public_code(seed):
    factors, codes = recipe(seed)
    public = PUBLIC["seeds"][str(seed)]
    found = infomec.infomec(codes=codes, factors=factors, seed=3)
    expected = dict(zip(found, (public["infom"], public["infoe"], public["infoc"]), strict=True))
    assert list(found) == ["modularity", "explicitness", "compactness"]
    assert found == pytest.approx(expected, abs=1e-6)
    information = infomec.normalized_information(codes=codes, factors=factors, seed=4)
    np.testing.assert_allclose(information, public["nmi"], atol=1e-6)


def test_information_of_a_continuous_latent_against_numerical_integration():
    """A fair bit seen through Gaussian noise: H(z) - H(z | s), by quadrature."""
    bit = np.arange(20_000) % 2
    codes = (bit + 0.5 * np.random.default_rng(0).normal(size=len(bit)))[:, None]
    z = np.linspace(-4, 5, 20_001)
    given = np.exp(-0.5 * ((z - np.array([[0.0], [1.0]])) / 0.5) ** 2) / np.sqrt(2 * np.pi * 0.25)
    mixed = given.mean(axis=0)
    integrand = (given * np.log(np.maximum(given, 1e-300) / mixed)).mean(axis=0)
    expected = np.trapezoid(integrand, z) / np.log(2)
    found = infomec.normalized_information(codes=codes, factors=bit[:, None], seed=0)
    assert found[0, 0] == pytest.approx(expected, abs=0.02)


def test_explicitness_against_the_minimised_cross_entropy():
    factors, codes = recipe(2)
    factors, codes = factors[:, :2], codes[:, [0, 1, 5]]
    scaled = (codes - codes.mean(axis=0)) / codes.std(axis=0)
    kept = []
    for factor in factors.T:  # whose classes are as frequent: weights and plain mean are the same
        classes = factor.max() + 1

        def cross_entropy(w, factor=factor, classes=classes):
            w = w.reshape(4, classes)
            logits = scaled @ w[:3] + w[3]
            logs = logits - scipy.special.logsumexp(logits, axis=1, keepdims=True)
            return -logs[np.arange(len(factor)), factor].mean()

        best = scipy.optimize.minimize(cross_entropy, np.zeros(4 * classes), tol=1e-8).fun
        kept.append(1 - best / np.log(classes))
    found = infomec.explicitness(codes=codes, factors=factors)
    assert found == pytest.approx(np.mean(kept), abs=1e-4)


def test_extremes():
    factors, _ = recipe(0)
    true = factors + 1e-3 * np.random.default_rng(0).normal(size=factors.shape)
    found = infomec.infomec(codes=true, factors=factors, seed=0)
    assert found["modularity"] == pytest.approx(1, abs=0.02)
    assert found["compactness"] == pytest.approx(1, abs=0.02)
    # Two copies of each: as modular, less compact: (1/2 - 1/6) / (1 - 1/6).
    twice = infomec.infomec(codes=np.repeat(true, 2, axis=1), factors=factors, seed=0)
    assert twice["modularity"] == pytest.approx(1, abs=0.02)
    assert twice["compactness"] == pytest.approx(0.4, abs=0.02)
    # One latent that tells all of one factor and nothing of the others.
    one = infomec.infomec(codes=true[:, :1], factors=factors, seed=0)
    assert one["modularity"] == pytest.approx(1, abs=0.03)
    collapsed = infomec.infomec(codes=np.zeros((1200, 4)), factors=factors, seed=0)
    assert collapsed == pytest.approx({"modularity": 0, "explicitness": 0, "compactness": 0})
