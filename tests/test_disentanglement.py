"""Disentanglement scores against closed forms, brute force and the measured dSprites figures."""

import itertools

import jax
import numpy as np
import pytest
import scipy.stats
from sklearn.linear_model import LogisticRegression

from vae_attn.data import dsprites
from vae_attn.data.factor_grid import FactorGrid
from vae_attn.errors import UserError
from vae_attn.experiments.disentanglement import (
    factor_scores,
    mutual_information,
    predictability,
    robustness,
)
from vae_attn.experiments.disentanglement.codes import (
    codes_in_batches,
    encode_grid,
    sample_codes,
    sample_with_fixed_factor,
)
from vae_attn.experiments.disentanglement.scores import NAMES, disentanglement_scores

# One constant factor, in the middle, and three that vary.
GRID = FactorGrid(
    ("a", "constant", "b", "c"),
    (tuple(range(3)), (7.0,), tuple(range(4)), tuple(range(5))),
)
EVERY = np.arange(GRID.num_images)
FACTORS = GRID.classes(EVERY)[:, GRID.varying]
TRUE_CODES = FACTORS.astype(np.float64)
NOISE = np.random.default_rng(9).normal(size=(GRID.num_images, 6))


def _standardised(codes):
    return (codes - codes.mean(axis=0)) / codes.std(axis=0)


def _rng(seed=0):
    return np.random.default_rng(seed)


def _split(codes, factors):
    """Train and test points drawn from a table of codes."""
    train = _rng(0).integers(len(codes), size=2000)
    test = _rng(1).integers(len(codes), size=1000)
    return {
        "codes": codes[train],
        "factors": factors[train],
        "test_codes": codes[test],
        "test_factors": factors[test],
    }


# The figures of the true factors of dSprites and of their rotations


@pytest.fixture(scope="module")
def dsprites_factors():
    grid = dsprites.GRID
    return _standardised(grid.classes(np.arange(grid.num_images))[:, grid.varying])


@pytest.mark.slow
def test_true_factors_of_dsprites(dsprites_factors):
    scores = disentanglement_scores(
        codes_of=dsprites_factors.__getitem__, grid=dsprites.GRID, seed=0
    )
    assert scores["factor_vae"] == 1
    assert scores["held_out_factor_vae"] == 1
    assert scores["beta_vae"] == 1
    assert scores["modularity"] == pytest.approx(1, abs=1e-3)
    assert scores["mig"] == pytest.approx(0.90, abs=0.01)
    assert scores["sap"] == pytest.approx(0.24, abs=0.02)
    assert scores["irs"] == pytest.approx(1)
    for part in ("disentanglement", "completeness", "informativeness"):
        assert scores[f"dci_{part}"] == pytest.approx(1, abs=1e-3)


def test_rotations_of_the_factors_still_score_high_on_factor_vae(dsprites_factors):
    scores = []
    for seed in range(8):
        rotated = dsprites_factors @ scipy.stats.ortho_group.rvs(5, random_state=seed)
        wanted = ("factor_vae", "mig")
        scores.append(
            disentanglement_scores(
                codes_of=rotated.__getitem__, grid=dsprites.GRID, seed=seed, scores=wanted
            )
        )
    factor_vae = [score["factor_vae"] for score in scores]
    assert 0.78 <= np.median(factor_vae) <= 0.87
    assert min(factor_vae) > 0.7
    # MIG is not fooled by the same codes.
    assert max(score["mig"] for score in scores) < 0.5


# Sampling and batches


def test_groups_share_one_varying_factor_and_nothing_else():
    images, shared = sample_with_fixed_factor(GRID, _rng(), num_groups=600, group_size=20)
    classes = GRID.classes(images)[:, :, GRID.varying]
    constant = (classes == classes[:, :1]).all(axis=1)
    np.testing.assert_array_equal(constant.sum(axis=1), 1)  # 20 free draws never agree here
    np.testing.assert_array_equal(constant.argmax(axis=1), shared)
    assert scipy.stats.chisquare(np.bincount(shared, minlength=3)).pvalue > 0.01
    # The shared class is itself uniform.
    for k, size in enumerate((3, 4, 5)):
        fixed = classes[shared == k][:, 0, k]
        assert scipy.stats.chisquare(np.bincount(fixed, minlength=size)).pvalue > 0.01


def test_sampled_codes_belong_to_their_factors():
    codes, factors = sample_codes(TRUE_CODES.__getitem__, GRID, _rng(), num_samples=500)
    np.testing.assert_array_equal(codes, factors)
    assert factors.shape == (500, 3)


def test_codes_are_asked_for_in_batches_of_one_size():
    seen = []

    def codes_of(indices):
        seen.append(len(indices))
        return TRUE_CODES[indices]

    indices = _rng().integers(60, size=37)
    codes = codes_in_batches(codes_of, indices, batch_size=16)
    np.testing.assert_array_equal(codes, TRUE_CODES[indices])
    assert seen == [16, 16, 16]


def test_a_jitted_model_is_traced_once():
    traces = []

    @jax.jit
    def codes_of(indices):
        traces.append(indices.shape)
        return jax.numpy.stack([indices % 5, indices // 20], axis=1)  # whole numbers

    scores = disentanglement_scores(
        codes_of=codes_of, grid=GRID, seed=0, num_train=300, num_test=100, batch_size=64
    )
    assert traces == [(64,)]
    assert set(map(type, scores.values())) == {float}


@pytest.mark.parametrize(
    ("codes_of", "message"),
    [
        (lambda i: TRUE_CODES[i] * np.nan, "diverged"),
        (lambda i: TRUE_CODES[i, 0], r"shape \(8,\)"),
        (lambda i: TRUE_CODES[i[:-1]], r"shape \(7, 3\)"),
    ],
)
def test_codes_that_cannot_be_scored(codes_of, message):
    with pytest.raises(UserError, match=message):
        encode_grid(codes_of, GRID, batch_size=8)


# FactorVAE, both protocols


def test_factor_vae_votes_equal_a_plain_loop():
    mixed = TRUE_CODES @ _rng(1).normal(size=(3, 4))
    score = factor_scores.factor_vae_score(
        codes_of=mixed.__getitem__, grid=GRID, rng=_rng(5), num_votes=50, samples_per_vote=10
    )
    # The same draws, then Kim & Mnih's figure 2 step by step.
    rng = _rng(5)
    scale = mixed[rng.integers(GRID.num_images, size=10_000)].std(axis=0)
    groups, factors = sample_with_fixed_factor(GRID, rng, num_groups=50, group_size=10)
    ballots = {latent: [] for latent in range(4)}
    for group, factor in zip(groups, factors, strict=True):
        ballots[int(np.argmin([np.var(z) for z in (mixed[group] / scale).T]))].append(factor)
    right = sum(max(map(votes.count, votes)) for votes in ballots.values() if votes)
    assert score == right / 50
    assert 0.3 < score < 1


def test_factor_vae_score_of_the_true_factors_with_one_latent_pruned():
    # Votes on the factor without its latent fall on the others, and are lost.
    kl = np.array([2.0, 0.001, 3.0])
    active = factor_scores.active_latents(kl=kl)
    np.testing.assert_array_equal(active, [True, False, True])
    arguments = {"codes_of": TRUE_CODES.__getitem__, "grid": GRID, "num_votes": 3000}
    assert factor_scores.factor_vae_score(**arguments, rng=_rng()) == 1
    pruned = factor_scores.factor_vae_score(**arguments, rng=_rng(), active=active)
    assert pruned == pytest.approx(2 / 3, abs=0.03)
    none = factor_scores.factor_vae_score(**arguments, rng=_rng(), active=np.zeros(3, bool))
    assert none == 0


def test_constant_latents_never_win_a_vote():
    codes = np.concatenate([np.full((60, 1), 3.0), TRUE_CODES], axis=1)
    arguments = {"codes_of": codes.__getitem__, "grid": GRID, "rng": _rng()}
    assert factor_scores.factor_vae_score(**arguments) == 1
    assert factor_scores.held_out_factor_vae_score(**arguments, num_train_votes=500) == 1
    assert (
        factor_scores.held_out_factor_vae_score(**arguments, num_train_votes=500, min_std=0.0) == 1
    )


def test_held_out_score_prunes_by_standard_deviation():
    arguments = {"grid": GRID, "num_train_votes": 500, "num_eval_votes": 2000}

    def score(codes):
        return factor_scores.held_out_factor_vae_score(
            codes_of=codes.__getitem__, rng=_rng(), **arguments
        )

    standardised = _standardised(TRUE_CODES)
    assert score(standardised * 0.06) == 1
    assert score(standardised * 0.04) == 0
    assert score(standardised * [1, 1, 0.04]) == pytest.approx(2 / 3, abs=0.04)


def test_held_out_votes_are_not_those_the_classifier_learned_from():
    # Many latents of noise: in-sample majorities beat chance (1/3), held-out ones cannot.
    noise = _rng(3).normal(size=(20_000, 40))
    grid = FactorGrid(("a", "b", "c"), tuple(tuple(range(n)) for n in (20, 25, 40)))
    in_sample = factor_scores.factor_vae_score(
        codes_of=noise.__getitem__, grid=grid, rng=_rng(), num_votes=300, samples_per_vote=5
    )
    held_out = factor_scores.held_out_factor_vae_score(
        codes_of=noise.__getitem__,
        grid=grid,
        rng=_rng(),
        num_train_votes=300,
        num_eval_votes=3000,
        samples_per_vote=5,
    )
    assert in_sample > 0.45
    assert held_out == pytest.approx(1 / 3, abs=0.05)


def test_memory_bound_parts_cover_every_vote(monkeypatch):
    monkeypatch.setattr(factor_scores, "_IMAGES_AT_ONCE", 300)
    calls = []

    def codes_of(indices):
        calls.append(len(indices))
        return TRUE_CODES[indices]

    score = factor_scores.factor_vae_score(
        codes_of=codes_of,
        grid=GRID,
        rng=_rng(),
        num_votes=10,
        samples_per_vote=100,
        num_scale_samples=100,
        batch_size=100,
    )
    assert score == 1
    assert len(calls) == 1 + 10


# beta-VAE


def test_beta_vae_score_of_true_factors_and_of_noise():
    arguments = {"grid": GRID, "num_train": 1000, "num_eval": 1000}
    true = factor_scores.beta_vae_score(codes_of=TRUE_CODES.__getitem__, rng=_rng(), **arguments)
    assert true == 1
    big = FactorGrid(("a", "b", "c"), tuple(tuple(range(n)) for n in (20, 25, 40)))
    noise = _rng(4).normal(size=(20_000, 3))
    chance = factor_scores.beta_vae_score(
        codes_of=noise.__getitem__, rng=_rng(), **(arguments | {"grid": big})
    )
    assert chance == pytest.approx(1 / 3, abs=0.06)


def test_beta_vae_pairs_differ_in_class_between_pairs():
    points, factors = factor_scores._mean_differences(
        TRUE_CODES.__getitem__, GRID, _rng(), 200, 64, 1024
    )
    for point, factor in zip(points, factors, strict=True):
        np.testing.assert_array_equal(point == 0, np.arange(3) == factor)
    # Mean |i - j| of two uniform classes out of n is (n^2 - 1) / 3n.
    free = np.where(points == 0, np.nan, points)
    expected = [(n * n - 1) / (3 * n) for n in (3, 4, 5)]
    np.testing.assert_allclose(np.nanmean(free, axis=0), expected, rtol=0.03)


def test_beta_vae_pairs_of_one_point_have_classes_of_their_own():
    # A code that counts how often each class of the factor `a` occurs among a point's images:
    # were all pairs of a point to share one class, a point on `a` would see one class only.
    asked = []

    def codes_of(indices):
        asked.append(indices)
        return TRUE_CODES[indices]

    _, factors = factor_scores._mean_differences(codes_of, GRID, _rng(), 50, 64, 2 * 50 * 64)
    first, second = GRID.classes(asked[0].reshape(2, 50, 64))[..., GRID.varying]
    for point, factor in enumerate(factors):
        np.testing.assert_array_equal(first[point, :, factor], second[point, :, factor])
        assert len(np.unique(first[point, :, factor])) == (3, 4, 5)[factor]


# Mutual information: MIG and modularity


def test_mutual_information_against_a_histogram():
    codes = np.concatenate([TRUE_CODES @ _rng(1).normal(size=(3, 2)), NOISE[:, :2]], axis=1)
    found = mutual_information.mutual_information(codes=codes, factors=FACTORS, num_bins=7)
    for (i, latent), (k, factor) in itertools.product(enumerate(codes.T), enumerate(FACTORS.T)):
        joint, *_ = np.histogram2d(latent, factor, bins=(7, factor.max() + 1))
        joint /= joint.sum()
        independent = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0)
        full = joint > 0
        expected = np.sum(joint[full] * np.log(joint[full] / independent[full]))
        assert found[i, k] == pytest.approx(expected, abs=1e-12)


def test_mig_in_closed_form():
    def gap(codes):
        return mutual_information.mutual_information_gap(codes=codes, factors=FACTORS)

    a, b, c = TRUE_CODES.T
    assert gap(TRUE_CODES) == pytest.approx(1)
    assert gap(np.stack([a, b, c, a, b, c], axis=1)) == pytest.approx(0)
    # b's latent tells only whether b < 2: log 2 of log 4.
    assert gap(np.stack([a, b // 2, c], axis=1)) == pytest.approx((1 + 0.5 + 1) / 3)
    # One latent: nothing comes second; it holds all of a, nothing of the others.
    assert gap(a[:, None]) == pytest.approx(1 / 3)


def test_modularity_in_closed_form():
    def modularity(codes):
        return mutual_information.modularity(codes=codes, factors=FACTORS, num_bins=50)

    a, b, _ = TRUE_CODES.T
    assert modularity(TRUE_CODES) == pytest.approx(1)
    # 4a + b determines a and b: information log 3 and log 4 (out of three factors).
    both = 4 * a + b
    expected = 1 - np.log(3) ** 2 / (2 * np.log(4) ** 2)
    assert modularity(both[:, None]) == pytest.approx(expected)
    assert modularity(np.stack([a, both], axis=1)) == pytest.approx((1 + expected) / 2)
    assert modularity(np.stack([a, np.zeros(60)], axis=1)) == pytest.approx(0.5)


# Predictability: SAP, DCI, explicitness

BINARY = FactorGrid(("x", "y"), ((0.0, 1.0), (0.0, 1.0)))
BINARY_FACTORS = BINARY.classes(np.arange(4))


def test_sap_in_closed_form():
    sap = predictability.separated_attribute_predictability
    points = _split(BINARY_FACTORS * 2.0 - 1, BINARY_FACTORS)
    # The right latent predicts its binary factor always, the other one half of the time.
    assert sap(**points) == pytest.approx(0.5, abs=0.05)
    copies = _split(np.repeat(BINARY_FACTORS * 2.0 - 1, 2, axis=1), BINARY_FACTORS)
    assert sap(**copies) == 0


@pytest.mark.parametrize(
    ("importance", "disentanglement", "completeness"),
    [
        ([[2.0, 0.0], [0.0, 5.0]], 1, 1),
        ([[1.0, 1.0], [1.0, 1.0]], 0, 0),
        ([[1.0, 1.0], [0.0, 0.0]], 0, 1),  # one latent holds both factors; a dead one
        ([[1.0, 0.0], [1.0, 0.0]], 1, 0),  # two latents hold one factor
        # Row entropies 0 and H(1/4) bits, weights 1/5 and 4/5; columns H(1/2) and 0, 2/5, 3/5.
        ([[1.0, 0.0], [1.0, 3.0]], 0.2 + 0.8 * (1 - 0.8112781244591328), 0.6),
        ([[0.0, 0.0], [0.0, 0.0]], 0, 0),
    ],
)
def test_importance_scores_by_hand(importance, disentanglement, completeness):
    found = predictability.importance_scores(importance=np.array(importance))
    assert found == pytest.approx((disentanglement, completeness))


def test_dci_of_true_factors_of_copies_and_of_noise():
    true = predictability.dci(**_split(TRUE_CODES, FACTORS), seed=0)
    assert true == pytest.approx(
        {"disentanglement": 1, "completeness": 1, "informativeness": 1}, abs=1e-6
    )
    # One latent that holds everything: informative and complete, not disentangled.
    whole = predictability.dci(**_split(EVERY[:, None] * 1.0, FACTORS), seed=0)
    assert whole == pytest.approx(
        {"disentanglement": 0, "completeness": 1, "informativeness": 1}, abs=1e-6
    )
    factors = _rng(1).integers(4, size=(3000, 2))
    noise = predictability.dci(**_split(_rng(2).normal(size=(3000, 5)), factors), seed=0)
    assert noise["disentanglement"] < 0.1
    assert noise["completeness"] < 0.1


def test_explicitness_of_true_factors_and_of_noise():
    true = predictability.explicitness(**_split(BINARY_FACTORS * 1.0, BINARY_FACTORS))
    assert true == 1
    factors = _rng(1).integers(2, size=(5000, 2))
    noise = predictability.explicitness(**_split(_rng(2).normal(size=(5000, 5)), factors))
    assert noise == pytest.approx(0.5, abs=0.05)


def test_explicitness_equals_a_plain_loop():
    points = _split(TRUE_CODES @ _rng(1).normal(size=(3, 2)) + 0.5 * NOISE[:, :2], FACTORS)
    mean, std = points["codes"].mean(axis=0), points["codes"].std(axis=0)
    train, test = ((points[key] - mean) / std for key in ("codes", "test_codes"))
    areas = []
    for k, size in enumerate((3, 4, 5)):
        labels, test_labels = points["factors"][:, k], points["test_factors"][:, k]
        one_against_rest = np.stack(
            [
                LogisticRegression().fit(train, labels == label).predict_proba(test)[:, 1]
                for label in range(size)
            ]
        )
        one_against_rest /= one_against_rest.sum(axis=0)
        areas.append(
            [_area(test_labels == label, one_against_rest[label]) for label in range(size)]
        )
    expected = np.mean([np.mean(area) for area in areas])
    assert predictability.explicitness(**points) == pytest.approx(expected, abs=1e-6)


def _area(truth, score):
    """Area under the ROC curve: how often a positive outranks a negative, ties one half."""
    difference = score[truth][:, None] - score[~truth]
    return np.mean((difference > 0) + 0.5 * (difference == 0))


# IRS


def test_irs_in_closed_form():
    irs = robustness.interventional_robustness
    x, y = BINARY_FACTORS.T * 1.0
    assert irs(codes=TRUE_CODES, factors=FACTORS) == pytest.approx(1)
    # x + y deviates by .5 from its mean in a class of x, by 1 over all images.
    both = (x + y)[:, None]
    assert irs(codes=both, factors=BINARY_FACTORS, quantile=1.0) == pytest.approx(0.5)
    # Weights are the largest deviations: .5 for x, 1 for x + y; a constant latent has none.
    codes = np.stack([x, x + y, np.full(4, 3.0)], axis=1)
    expected = (0.5 * 1 + 1 * 0.5) / 1.5
    assert irs(codes=codes, factors=BINARY_FACTORS, quantile=1.0) == pytest.approx(expected)
    assert irs(codes=np.ones((4, 2)), factors=BINARY_FACTORS) == 0


# Invariances

BIG_GRID = FactorGrid(("a", "one", "b", "c"), tuple(tuple(range(n)) for n in (10, 1, 12, 15)))


def _all_scores(codes):
    return disentanglement_scores(
        codes_of=codes.__getitem__,
        grid=BIG_GRID,
        seed=0,
        num_train=1000,
        num_test=500,
        num_votes=300,
        samples_per_vote=10,
    )


@pytest.fixture(scope="module")
def imperfect():
    """Codes that no score calls perfect: all factors mixed, and noise."""
    factors = BIG_GRID.classes(np.arange(BIG_GRID.num_images))[:, BIG_GRID.varying]
    noise = _rng(9).normal(size=(len(factors), 4))
    mixing = _rng(2).normal(size=(3, 4))
    codes = _standardised(factors) @ mixing + 1.5 * noise
    scores = _all_scores(codes)
    assert all(0 < value < 1 for value in scores.values())
    return codes, scores


def test_scores_do_not_depend_on_the_order_of_latents(imperfect):
    codes, scores = imperfect
    permuted = _all_scores(codes[:, [2, 0, 3, 1]])
    for name, value in scores.items():
        # Trees break ties by the order of latents, solvers round by it.
        tolerance = 0.03 if name.startswith("dci") else 5e-3 if name == "beta_vae" else 1e-6
        assert permuted[name] == pytest.approx(value, abs=tolerance), name


def test_scores_that_do_not_depend_on_the_scale_of_each_latent(imperfect):
    codes, scores = imperfect
    scaled = _all_scores(codes * [4.0, -0.5, 2.0, 0.25] + [0.0, 1.0, -2.0, 0.0])
    for name in ("factor_vae", "held_out_factor_vae", "mig", "modularity", "explicitness"):
        assert scaled[name] == pytest.approx(scores[name], abs=1e-6), name
    for part in ("disentanglement", "completeness", "informativeness"):
        # Mirroring a latent moves a threshold between two points to the other side of ties.
        assert scaled[f"dci_{part}"] == pytest.approx(scores[f"dci_{part}"], abs=0.03)
    # IRS does depend on it, by its definition; all latents alike leave it unchanged.
    assert scaled["irs"] != pytest.approx(scores["irs"], abs=1e-3)
    assert _all_scores(codes * 4.0)["irs"] == pytest.approx(scores["irs"])


# All at once


def test_scores_are_seeded_and_independent_of_each_other(imperfect):
    codes, scores = imperfect
    assert _all_scores(codes) == scores
    alone = disentanglement_scores(
        codes_of=codes.__getitem__,
        grid=BIG_GRID,
        seed=0,
        scores=("factor_vae", "sap"),
        num_train=1000,
        num_test=500,
        num_votes=300,
        samples_per_vote=10,
        batch_size=7,
    )
    assert alone == {name: scores[name] for name in ("factor_vae", "sap")}
    assert list(scores) == [
        *NAMES[:5],
        "dci_disentanglement",
        "dci_completeness",
        "dci_informativeness",
        *NAMES[6:-1],
        "infomec_modularity",
        "infomec_explicitness",
        "infomec_compactness",
    ]


def test_the_grid_is_encoded_once_where_many_images_are_needed():
    asked = []

    def codes_of(indices):
        asked.append(indices)
        return TRUE_CODES[indices]

    disentanglement_scores(
        codes_of=codes_of, grid=GRID, seed=0, num_train=300, num_test=100, batch_size=20
    )
    np.testing.assert_array_equal(np.concatenate(asked), EVERY)


def test_unknown_score():
    with pytest.raises(UserError, match="'fid' is unknown; choose from factor_vae"):
        disentanglement_scores(
            codes_of=TRUE_CODES.__getitem__, grid=GRID, seed=0, scores=("fid", "mig")
        )
