"""The codes' scale and correlation, and the sentence about a discriminator that does not see."""

import numpy as np
import pytest
import scipy.stats

from vae_attn.experiments.disentanglement import diagnosis


def test_gaussian_total_correlation_against_entropies():
    """Sum of the marginals' entropies minus the joint one's, as scipy has them."""
    root = np.random.default_rng(0).normal(size=(4, 4))
    covariance = root @ root.T
    marginals = sum(scipy.stats.norm(scale=np.sqrt(v)).entropy() for v in np.diag(covariance))
    expected = marginals - scipy.stats.multivariate_normal(cov=covariance).entropy()
    found = diagnosis.gaussian_total_correlation(covariance=covariance)
    assert found == pytest.approx(expected)
    scale = np.diag([1e-4, 1, 30, 1e3])
    scaled = diagnosis.gaussian_total_correlation(covariance=scale @ covariance @ scale)
    assert scaled == pytest.approx(expected)
    apart = diagnosis.gaussian_total_correlation(covariance=np.diag([2.0, 1e-8]))
    assert apart == pytest.approx(0, abs=1e-12)


def test_codes_have_the_deviations_of_their_samples():
    rng = np.random.default_rng(1)
    mean = rng.normal(size=(20_000, 3)) @ np.array([[1.0, 0.5, 0], [0, 0.1, 0], [0, 0, 0]])
    logvar = np.broadcast_to(np.log([0.5, 0.01, 1.0]), mean.shape) + 0.1 * rng.normal(
        size=mean.shape
    )
    z = mean + np.exp(logvar / 2) * rng.normal(size=mean.shape)
    found = diagnosis.of_codes(mean=mean.astype(np.float32), logvar=logvar.astype(np.float32))
    for k in range(3):
        assert found[f"latent_deviation/z{k}"] == pytest.approx(z[:, k].std(), rel=0.02)
    correlations = np.corrcoef(z.T)
    expected = -0.5 * np.log(np.linalg.det(correlations))
    assert found["gaussian_total_correlation"] == pytest.approx(expected, rel=0.05)
    one = diagnosis.of_codes(mean=np.zeros((5, 1)), logvar=np.zeros((5, 1)))
    assert one == pytest.approx({"gaussian_total_correlation": 0, "latent_deviation/z0": 1})


@pytest.mark.parametrize(
    ("estimated", "there", "blind"),
    [(0.17, 2.22, True), (1.2, 2.22, False), (0.0, 0.05, False), (3.0, 2.0, False)],
)
def test_the_sentence_about_a_blind_discriminator(estimated, there, blind):
    steps = list(range(10, 110, 10))
    curves = {
        "total_correlation": (steps, [9.0] * 5 + [estimated] * 5),
        "discriminator_loss": (steps, [0.69] * 10),
        "gaussian_total_correlation": ([50, 100], [9.0, there]),
    }
    sentence = diagnosis.blindness(curves)
    assert bool(sentence) == blind
    if blind:
        assert "at 0.17 nats, and their covariance alone accounts for 2.22" in sentence
    without = {name: curve for name, curve in curves.items() if name != "discriminator_loss"}
    assert diagnosis.blindness(without) == ""
    assert diagnosis.blindness({}) == ""
