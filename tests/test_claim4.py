"""launch/claim4.py with small models: resumed, scored, compared; the state that travels."""

import functools
import importlib.util
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from dsprites_grids import small_grid
from factor_model import IMAGES, LATENTS, MODEL, vae_params

from vae_attn.data import dsprites
from vae_attn.data.factor_grid import FactorData, FactorGrid
from vae_attn.errors import UserError
from vae_attn.experiments.disentanglement import (
    likeness,
    model_scores,
    objective_comparison,
    objective_runs,
)
from vae_attn.experiments.disentanglement.objective_comparison import Scored
from vae_attn.models.discriminator import Discriminator
from vae_attn.training import attention_loss, compact, factor, objectives

ROOT = pathlib.Path(__file__).resolve().parents[1]
SETTINGS = [
    *("--latents=4", "--rate_seconds=0", "--minutes=60"),
    *(f"--set={key}={value}" for key, value in {
        "model.name": "small_models:shapes",
        "data.channels": 1,
        "train.batch_size": 16,
        "train.learning_rate": 0.01,
        "factor.ad_layer": "conv1",
        "attention.layer": "conv1",
        "evaluate.layers": '["conv1"]',
        "evaluate.points": 100,
        "evaluate.batch_size": 1024,
        "evaluate.faithful_images": 2,
    }.items()),
]  # fmt: skip


@pytest.fixture(scope="module")
def claim4():
    """The launcher as a module, with few images and a small discriminator."""
    spec = importlib.util.spec_from_file_location("claim4", ROOT / "launch" / "claim4.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dsprites, "GRID", small_grid())
        patch.setattr(factor, "Discriminator", functools.partial(Discriminator, units=16))
        patch.setattr(model_scores, "_LIKENESS_IMAGES", 8)
        yield module


def total(config, variables, **networks):
    """In place of scores: what differs as soon as one parameter does."""
    leaves = jax.device_get(jax.tree.leaves(variables))
    return {"mig": float(sum(np.abs(leaf).sum(dtype=float) for leaf in leaves))}


@pytest.fixture(scope="module")
def finished(claim4, tmp_path_factory):
    """A short comparison that was not interrupted: its options, and its folder."""
    workdir = tmp_path_factory.mktemp("claim4")
    options = [*SETTINGS, "--steps=8", "--seeds=1", "--objectives=beta_tc_vae"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_scores, "measure", total)
        assert claim4.main([*options, f"--workdir={workdir}"]) == 0
    return options, workdir


def rows(workdir, name):
    return [json.loads(one) for one in (workdir / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.slow
def test_it_runs_through(claim4, tmp_path):
    objectives = "--objectives=ad_factor_vae_published,beta_tc_vae"
    options = [*SETTINGS, "--steps=200", "--seeds=1", objectives, f"--workdir={tmp_path}"]
    assert claim4.main(options) == 0
    scored = rows(tmp_path, "scores.jsonl")
    assert [(row["objective"], row["seed"], row["step"]) for row in scored] == [
        (objective, 0, step)
        for objective in ("ad_factor_vae_published", "beta_tc_vae")
        for step in (50, 100, 150, 200)
    ]
    names = {"factor_vae", "mig", "dci_disentanglement", "infomec_modularity", "kl"}
    names |= {"gaussian_total_correlation", "total_correlation", "smallest_deviation"}
    names |= {f"likeness/{form}" for form in attention_loss.FORMS}
    names |= {"faithfulness/paper/conv1/which_latent"}
    assert all(names <= row["values"].keys() for row in scored)
    curves = [row["step"] for row in rows(tmp_path, "curves.jsonl")]
    assert curves == 2 * list(range(5, 205, 5))
    table = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "# dSprites-equivalent, 200 steps, 4 latents" in table
    assert table.count("| beta_tc_vae |") == 3 + 3
    assert "| likeness/jacobian_cosine |" in table
    assert not (tmp_path / "in_progress.safetensors").exists()
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
def test_stopped_and_resumed_equals_the_uninterrupted_one(claim4, finished, tmp_path, monkeypatch):
    """Bit for bit: killed between a save and its scores, out of time, then to the end."""
    options, whole = finished
    parts = [*options, f"--workdir={tmp_path}"]
    state = tmp_path / "in_progress.safetensors"

    def killed(config, variables, **networks):
        raise KeyboardInterrupt

    monkeypatch.setattr(model_scores, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        claim4.main(parts)
    assert compact.read(state) == {"objective": "beta_tc_vae", "seed": 0, "step": 2}
    monkeypatch.setattr(model_scores, "measure", total)
    assert claim4.main([*parts, "--minutes=0"]) == 75
    assert compact.read(state)["step"] == 3
    with pytest.raises(UserError, match="is of beta_tc_vae, seed 0, at step 3, and only one"):
        claim4.main([*parts, "--objectives=factor_vae"])
    assert claim4.main(parts) == 0
    for name in ("curves.jsonl", "scores.jsonl", "table.md"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()
    assert [row["step"] for row in rows(tmp_path, "scores.jsonl")] == [2, 4, 6, 8]
    monkeypatch.setattr(objective_runs.Comparison, "_train", None)  # as all is done
    assert claim4.main(parts) == 0


def test_what_cannot_be_asked_for(claim4, finished):
    options, workdir = finished
    for wrong, message in {
        "--steps=400": r"was made with .*'steps': 8.*and this call has",
        "--set=train.bta=1": r"--set train.bta=1: there is no key train.bta",
        "--set=train.beta=much": r"--set train.beta=much: ",
        "--objectives=gan": "variant 'gan' is unknown: give one of :vae",
    }.items():
        with pytest.raises(UserError, match=message):
            claim4.main([*options, f"--workdir={workdir}", wrong])


def test_a_broken_file_is_named(claim4, finished, tmp_path):
    options, workdir = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    (tmp_path / "scores.jsonl").write_text('{"objective": "vae"}\n', encoding="utf-8")
    with pytest.raises(UserError, match=r"scores.jsonl cannot be read \('seed'\): restore it"):
        claim4.main([*options, f"--workdir={tmp_path}"])


def test_options_that_cannot_be(claim4, capsys):
    for wrong in ("--steps=201", "--seeds=0", "--set=train.beta"):
        with pytest.raises(SystemExit):
            claim4.parse(["--workdir=x", wrong])
    assert "must be KEY=VALUE" in capsys.readouterr().err


# The state that travels


def state_of(value=0.0):
    params = {"w": jnp.linspace(0, 1, 7) + value}
    moments = {"mu": jnp.linspace(1, 2, 7) / 3 + value, "count": jnp.int32(3)}
    return {"step": jnp.int32(5), "params": params, "opt_state": moments}


def test_the_state_is_kept_but_for_the_moments_last_digits(tmp_path):
    path, state = tmp_path / "state.safetensors", state_of()
    assert compact.read(path) is None
    compact.save(path, state, objective="factor_vae", step=5)
    assert compact.read(path) == {"objective": "factor_vae", "step": 5}
    found = compact.load(path, state_of(9.0))
    jax.tree.map(np.testing.assert_array_equal, found, compact.rounded(state))
    np.testing.assert_array_equal(found["params"]["w"], state["params"]["w"])
    np.testing.assert_allclose(found["opt_state"]["mu"], state["opt_state"]["mu"], rtol=2**-8)
    assert (found["opt_state"]["mu"] != state["opt_state"]["mu"]).any()
    assert [x.dtype for x in jax.tree.leaves(found)] == [x.dtype for x in jax.tree.leaves(state)]


def test_a_whole_run_fits_into_what_travels(claim4, tmp_path):
    """AD-FactorVAE with ten latents, of its real size."""
    options = claim4.parse([f"--workdir={tmp_path}", "--objectives=ad_factor_vae"])
    config = claim4.config_of("ad_factor_vae", options)
    networks = {"model": objectives.build_model(config), "discriminator": Discriminator()}
    optimizers = {"tx": optax.adam(1e-4), "discriminator_tx": optax.adam(1e-4)}
    state = jax.eval_shape(lambda: factor.create(**networks, **optimizers, seed=0))
    sizes = [
        leaf.size * (2 if compact._is_moment(path, leaf) else leaf.dtype.itemsize)
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    ]
    assert sum(sizes) / 1e6 == pytest.approx(44, abs=3)


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "no_file"])
def test_a_broken_state_is_refused(damage, tmp_path):
    path, state = tmp_path / "state.safetensors", state_of()
    compact.save(path, state, step=5)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-9])
    if damage == "flipped":
        content[-3] ^= 1
        path.write_bytes(content)
    if damage == "other":
        state["params"]["w"] = jnp.zeros(8)
    if damage == "no_file":
        path.write_text("no state", encoding="utf-8")
    with pytest.raises(UserError, match=r"state.safetensors is broken, or of another model: "):
        compact.load(path, state)


# The comparison

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
    over, means, _, paired, ranks = objective_comparison.tables(MODELS, baseline="a")
    assert ["a", "mig", "0.515 ± 0.013"] in over.rows
    assert means.rows[0] == ["objective", "seeds", "mig"]
    assert paired.rows[1][:2] == ["b", "4"]
    assert paired.rows[1][2].startswith("+0.138 (p ")
    assert ranks.rows[1][0] == "likeness/paper"
    assert ranks.rows[1][-1] == "8"


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

    grid = FactorGrid(("n",), (tuple(range(len(IMAGES))),))
    data, variables = FactorData("noise", grid, IMAGES), {"params": vae_params()}
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
