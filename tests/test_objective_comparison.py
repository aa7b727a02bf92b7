"""Objectives side by side: means, paired tests, rank correlations, curves; likeness of maps."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from factor_model import IMAGES, LATENTS, MODEL, vae_params

from vae_attn.data.factor_grid import FactorData, FactorGrid
from vae_attn.experiments.disentanglement import likeness, objective_comparison
from vae_attn.experiments.disentanglement.objective_comparison import Scored
from vae_attn.training import attention_loss

DIFFERENCES = (0.1, 0.3, -0.05, 0.2)
MODELS = [
    Scored("a", seed, 10, {"mig": 0.5 + 0.01 * seed, "likeness/paper": 1.0 - seed})
    for seed in range(4)
] + [
    Scored("b", seed, 10, {"mig": 0.5 + 0.01 * seed + d, "likeness/paper": 2.0 - d})
    for seed, d in enumerate(DIFFERENCES)
]


def test_paired_test_against_scipys():
    arguments = {"objective": "b", "baseline": "a", "step": 10, "score": "mig"}
    mean, p, seeds = objective_comparison.paired(MODELS, **arguments)
    b, a = ([m.scores["mig"] for m in MODELS if m.objective == name] for name in "ba")
    assert (mean, seeds) == (pytest.approx(np.mean(DIFFERENCES)), 4)
    assert p == pytest.approx(scipy.stats.ttest_rel(b, a).pvalue)
    only = objective_comparison.paired(MODELS[:5], **arguments)
    assert only[0] == pytest.approx(0.1)
    assert np.isnan(only[1])
    assert only[2] == 1


def test_rank_correlation_by_hand():
    """1 - 6 sum d^2 / (n (n^2 - 1))."""
    scores = [(1.0, 0.2), (2.0, 0.1), (3.0, 0.4), (4.0, 0.3), (5.0, 0.9)]
    models = [Scored("a", n, 1, {"x": x, "mig": y}) for n, (x, y) in enumerate(scores)]
    rho, _, count = objective_comparison.rank_correlation(models, measure="x", score="mig")
    assert (rho, count) == (pytest.approx(1 - 6 * 4 / 120), 5)
    few = objective_comparison.rank_correlation(models[:2], measure="x", score="mig")
    assert np.isnan(few[0])


def test_tables():
    earlier = [Scored("a", n, 5, {"mig": 0.1 * n, "likeness/paper": 0.01 * n}) for n in range(40)]
    models = [*earlier, *MODELS]
    over, means, _, paired, ranks = objective_comparison.tables(models, baseline="a")
    assert ["a", "mig", "1.950 ± 1.169", "0.515 ± 0.013"] in over.rows
    assert means.rows[0] == ["objective", "seeds", "mig"]
    assert paired.rows[1][:2] == ["b", "4"]
    assert paired.rows[1][2].startswith("+0.138 (p ")
    every, last = (
        scipy.stats.spearmanr(*([m.scores[name] for m in these] for name in MODELS[0].scores))
        for these in (models, MODELS)
    )
    expected = f"{every.statistic:+.2f} / {last.statistic:+.2f} (p {last.pvalue:.2g})"
    assert ranks.rows[1] == ["likeness/paper", expected, "", "", "48 / 8"]


def test_curves_are_means_over_the_seeds_that_have_come_so_far():
    trained = [
        Scored("a", 0, 10, {"kl": 3.0, "discriminator_accuracy": 0.5}),
        Scored("a", 1, 10, {"kl": 5.0}),
        Scored("a", 0, 20, {"kl": 1.0}),
        Scored("b", 0, 10, {"kl": 7.0}),
    ]
    trained += [Scored("a", 0, step, {"reconstruction": 900.0 / step}) for step in (1, 2, 30)]
    drawn = objective_comparison.figure(trained, [Scored("b", 0, 10, {"mig": 0.3})])
    axes = {axis.get_title(): axis for axis in drawn.axes}
    lines = [line.get_xydata().tolist() for line in axes["KL, nats"].lines]
    assert lines == [
        [[10, 4.0], [20, 1.0]],
        *([[10, 3.0], [20, 1.0]], [[10, 5.0]]),
        [[10, 7.0]],
    ]
    (late,) = axes["reconstruction, nats, after a tenth"].lines
    assert late.get_xydata().tolist() == [[30, 30.0]]
    (mig,) = axes["MIG"].lines
    assert mig.get_xydata().tolist() == [[10, 0.3]]
    assert mig.get_color() == axes["KL, nats"].lines[-1].get_color()  # of the same objective
    assert {text.get_text() for text in drawn.legends[0].get_texts()} == {"a", "b"}


@pytest.mark.slow
def test_likeness_of_the_maps_of_a_model():
    """Over the pairs of active latents alone, against the form itself, pair after pair."""
    data = FactorData("noise", FactorGrid(("n",), (tuple(range(len(IMAGES))),)), IMAGES)
    variables = {"params": vae_params()}
    found = likeness.likeness(
        MODEL,
        variables,
        data,
        active=np.array([True, False, True, True]),
        layer="conv2",
        num_images=6,
        seed=0,
    )
    x = data.pixels(data.sample(12, seed=0))
    features = MODEL.apply(variables, x[:6], "conv2", method="features")
    seen = attention_loss.Seen(MODEL, variables, "conv2", x[:6], features, x[6:])
    assert set(found) == {f"likeness/{form}" for form in attention_loss.FORMS}
    for form in ("paper", "jacobian_cosine"):
        each = [
            attention_loss.attention_loss(form, seen, jnp.array([pair]))[0].mean()
            for pair in ((0, 2), (0, 3), (2, 3))
        ]
        assert found[f"likeness/{form}"] == pytest.approx(np.mean(each), rel=1e-4)
    none = likeness.likeness(
        MODEL,
        variables,
        data,
        active=np.arange(LATENTS) == 1,
        layer="conv2",
        num_images=6,
        seed=0,
    )
    assert none == {}
