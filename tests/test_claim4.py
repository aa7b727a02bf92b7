"""launch/claim4.py with small models: resumed, scored, reported."""

import concurrent.futures
import functools
import importlib.util
import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
from concurrent.futures.process import BrokenProcessPool

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import psutil
import pytest
from dsprites_grids import small_grid
from factor_model import IMAGES

from vae_attn.data import dsprites
from vae_attn.data.factor_grid import FactorData, FactorGrid
from vae_attn.errors import UserError
from vae_attn.experiments.disentanglement import (
    model_scores,
    objective_runs,
    objective_scoring,
)
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


NOISE = FactorData("noise", FactorGrid(("n",), (tuple(range(len(IMAGES))),)), IMAGES)


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
    begun = {"objective": "beta_tc_vae", "seed": 0, "seeds": 1, "step": 2}
    assert compact.read(state) == begun
    assert (tmp_path / "model-beta_tc_vae-0-2.safetensors").exists()
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


@pytest.mark.slow
def test_seeds_at_once_are_those_alone(claim4, finished, tmp_path, monkeypatch):
    """Each with its own rows; stopped and resumed as one alone is."""
    options, alone = finished
    monkeypatch.setattr(model_scores, "measure", total)
    options = [*options, "--seeds=3", "--seeds_at_once=2"]
    for name, first in (("whole", "--minutes=60"), ("resumed", "--minutes=0")):
        folder = tmp_path / name
        rc = claim4.main([*options, f"--workdir={folder}", first])
        if name == "resumed":
            assert rc == 75
            about = compact.read(folder / "in_progress.safetensors")
            assert about == {"objective": "beta_tc_vae", "seed": 0, "seeds": 2, "step": 1}
            assert claim4.main([*options, f"--workdir={folder}"]) == 0
    for file in ("curves.jsonl", "scores.jsonl", "table.md"):
        whole, resumed = (tmp_path / name / file for name in ("whole", "resumed"))
        assert whole.read_bytes() == resumed.read_bytes()
    found = rows(tmp_path / "whole", "scores.jsonl")
    seeds = [(row["seed"], row["step"]) for row in found]
    assert seeds == [(s, step) for step in (2, 4, 6, 8) for s in (0, 1)] + [
        (2, step) for step in (2, 4, 6, 8)
    ]
    of_first = [row["values"] for row in found if row["seed"] == 0]
    for one, expected in zip(of_first, rows(alone, "scores.jsonl"), strict=True):
        assert one == pytest.approx(expected["values"], rel=1e-5)
    assert found[0]["values"] != found[1]["values"]


@pytest.mark.slow
def test_killed_between_models_and_state(claim4, finished, tmp_path, monkeypatch):
    """What is trained again is not scored before."""
    options, whole = finished
    options = [*options, f"--workdir={tmp_path}"]
    save, seen = compact.save, []

    def killed(path, state, **about):
        if path.name.startswith("in_progress") and about["step"] == 4:
            raise KeyboardInterrupt
        save(path, state, **about)

    monkeypatch.setattr(model_scores, "measure", total)
    monkeypatch.setattr(compact, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        claim4.main(options)
    monkeypatch.setattr(compact, "save", save)
    assert (tmp_path / "model-beta_tc_vae-0-4.safetensors").exists()
    monkeypatch.setattr(
        objective_runs.Scoring,
        "submit",
        lambda self, about, *given, submit=objective_runs.Scoring.submit: (
            seen.append(about.step),
            submit(self, about, *given),
        ),
    )
    assert claim4.main(options) == 0
    assert seen == [4, 6, 8]
    for name in ("curves.jsonl", "scores.jsonl", "table.md"):
        assert (tmp_path / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.slow
def test_a_call_ends_before_a_part_that_does_not_fit(claim4, finished, tmp_path, monkeypatch):
    """By a clock that goes on by 100 seconds at each save."""
    options, _ = finished
    options = [*options, "--seeds=2", "--minutes=5", f"--workdir={tmp_path}"]
    save, late = compact.save, []

    def slow(path, state, **about):
        if path.name.startswith("in_progress") or about["step"] == 8:
            late.append(100.0)
        save(path, state, **about)

    clock = types.SimpleNamespace(monotonic=lambda: time.monotonic() + sum(late))
    monkeypatch.setattr(objective_runs, "time", clock)
    monkeypatch.setattr(compact, "save", slow)
    monkeypatch.setattr(model_scores, "measure", total)
    assert claim4.main(options) == 75
    assert compact.read(tmp_path / "in_progress.safetensors")["step"] == 2
    late.clear()
    assert claim4.main([*options, "--minutes=11.5"]) == 75  # 600 of 690 seconds end seed 0
    assert [row["seed"] for row in rows(tmp_path, "scores.jsonl")] == 4 * [0]
    assert compact.read(tmp_path / "in_progress.safetensors") is None


def of_a_process(*finished):
    """A `Scoring` with scores that processes have given, or have failed to give."""
    scoring = objective_scoring.Scoring(ml_collections.ConfigDict(), NOISE, processes=0)
    for n, one in enumerate(finished):
        future = scoring._under_way[objective_runs.About("a", n, 1)] = concurrent.futures.Future()
        if isinstance(one, Exception):
            future.set_exception(one)
        elif one is not None:
            future.set_result(one)
    return scoring


def test_scores_come_one_by_one():
    scoring = of_a_process({"mig": 1.0}, None, {"mig": 2.0})
    found = list(scoring.done(seconds=60.0, most=1))  # does not wait for the one
    assert [(about.seed, scores) for about, scores in found] == [
        (0, {"mig": 1.0}),
        (2, {"mig": 2.0}),
    ]
    assert scoring.under_way == 1
    assert list(scoring.done()) == []
    last = next(iter(scoring._under_way.values()))
    threading.Timer(0.2, last.set_result, ({"mig": 3.0},)).start()
    assert [scores for _, scores in scoring.done(seconds=60.0)] == [{"mig": 3.0}]
    assert scoring.under_way == 0


def test_scores_before_a_process_that_has_ended_are_kept():
    found = of_a_process({"mig": 1.0}, BrokenProcessPool("killed")).done()
    assert next(found)[1] == {"mig": 1.0}
    with pytest.raises(UserError, match=r"a process that scores models has ended; .*--score_proc"):
        next(found)


def test_what_is_trained_together(claim4, finished, tmp_path, monkeypatch):
    """The seeds that are missing, in blocks, an objective after the other."""
    options, workdir = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    blocks = []
    monkeypatch.setattr(objective_runs.Comparison, "_tell", lambda *_: None)
    monkeypatch.setattr(
        objective_runs.Comparison, "_train", lambda self, block, _: blocks.append(tuple(block))
    )
    several = ["--seeds=5", "--seeds_at_once=2", "--objectives=vae,beta_tc_vae"]
    assert claim4.main([*options, f"--workdir={tmp_path}", *several]) == 0
    assert blocks == [
        *(("vae", 0, 2), ("beta_tc_vae", 1, 1)),
        *(("vae", 2, 2), ("beta_tc_vae", 2, 2)),
        *(("vae", 4, 1), ("beta_tc_vae", 4, 1)),
    ]


def test_other_folders_are_reported_too(claim4, finished, tmp_path, monkeypatch):
    options, workdir = finished
    monkeypatch.setattr(objective_runs.Comparison, "run", None)  # nothing is trained
    other, third, own = tmp_path / "other", tmp_path / "third", tmp_path / "own"
    for copy, name in ((other, "vae"), (third, "beta_vae")):
        shutil.copytree(workdir, copy)
        for file in ("scores.jsonl", "curves.jsonl"):
            renamed = (
                (copy / file).read_text(encoding="utf-8").replace('"beta_tc_vae"', f'"{name}"')
            )
            (copy / file).write_text(renamed, encoding="utf-8")
    lines = (third / "scores.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (third / "scores.jsonl").write_text("".join(lines[:2]), encoding="utf-8")  # not done yet
    objectives = "--objectives=beta_vae,vae,beta_tc_vae"
    call = [*options, objectives, f"--workdir={own}"]
    assert claim4.main([*call, f"--beside={workdir},{other},{third}"]) == 0
    table = (own / "table.md").read_text(encoding="utf-8")
    counts = [table.count(f"\n| {name} |") for name in ("beta_vae", "vae", "beta_tc_vae")]
    assert counts == [3, 6, 6]  # at its steps alone, and at the last one too
    assert table.index("| beta_vae |") < table.index("| vae |") < table.index("| beta_tc_vae |")
    with pytest.raises(UserError, match=r"has beta_tc_vae, seed 0, step 2, as .* has: give only"):
        claim4.main([*options, f"--workdir={workdir}", f"--beside={workdir}"])
    (other / "settings.json").write_text('{"steps": 4}', encoding="utf-8")
    with pytest.raises(UserError, match=r"other was made with {'steps': 4}, and this call has"):
        claim4.main([*call, f"--beside={other}"])
    with pytest.raises(
        UserError, match=r"nothing/settings.json cannot be read: give the folder of"
    ):
        claim4.main([*call, f"--beside={tmp_path / 'nothing'}"])


@pytest.mark.slow
def test_scored_by_processes_of_their_own(tmp_path):
    """The same scores; a call that is over, or killed, leaves models that wait, and no process."""
    program = [sys.executable, str(ROOT / "launch" / "claim4.py"), *SETTINGS, "--steps=4"]
    program += ["--seeds=1", "--objectives=beta_tc_vae"]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    folder = tmp_path / "beside"

    def start(folder, *options):
        command = [*program, f"--workdir={folder}", *options]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, env=environment, stderr=pipe, text=True)

    def finish(folder, *options):
        with start(folder, *options) as call:
            _, log = call.communicate()
        return call.returncode, log

    code, log = finish(tmp_path / "here")
    assert code == 0, log
    assert "steps/s on cpu. Runs left: 1, of 4 steps each, about " in log
    code, log = finish(folder, "--score_processes=1", "--minutes=0")
    assert code == 75, log
    assert "Traceback" not in log
    assert "Models that wait for their scores: 1." in log
    assert not (folder / "scores.jsonl").exists()
    for end, expected in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
        with start(folder, "--score_processes=1") as call:
            scoring = []
            while not scoring:
                time.sleep(0.2)
                assert call.poll() is None, call.stderr.read()
                children = psutil.Process(call.pid).children()
                scoring = [one for one in children if "spawn_main" in " ".join(one.cmdline())]
            call.send_signal(end)
        assert call.returncode == expected
        assert psutil.wait_procs(scoring, timeout=60)[1] == []
    code, log = finish(folder, "--score_processes=1")
    assert code == 0, log
    for name in ("curves.jsonl", "scores.jsonl", "table.md"):
        assert (folder / name).read_bytes() == (tmp_path / "here" / name).read_bytes()
    assert not list(folder.glob("*.safetensors"))


def test_a_model_that_is_scored_already_is_not_scored_again(claim4, finished, tmp_path):
    """As after a kill between its scores and the end of its file."""
    options, workdir = finished
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    model = tmp_path / "model-beta_tc_vae-0-8.safetensors"
    about = {"objective": "beta_tc_vae", "seed": 0, "step": 8}
    compact.save(model, {"x": jnp.ones(1)}, **about)
    state = tmp_path / "in_progress.safetensors"
    compact.save(state, {"x": jnp.ones(1)}, **(about | {"step": 7}))
    (tmp_path / ".writing-in_progress.safetensors").write_bytes(b"half")
    before = (tmp_path / "scores.jsonl").read_bytes()
    assert claim4.main([*options, f"--workdir={tmp_path}"]) == 0
    assert not list(tmp_path.glob("*.safetensors")) + list(tmp_path.glob(".writing-*"))
    assert (tmp_path / "scores.jsonl").read_bytes() == before
    other = tmp_path / "model-beta_tc_vae-1-4.safetensors"
    other.write_bytes(b"no model")
    with pytest.raises(UserError, match=r"1-4.safetensors is broken, or of another model: remove"):
        claim4.main([*options, f"--workdir={tmp_path}"])
    compact.save(other, {"x": jnp.ones(1)}, **(about | {"seed": 1, "step": 4}))
    with pytest.raises(UserError, match=r"1-4.safetensors is broken, or of another model: remove"):
        claim4.main([*options, f"--workdir={tmp_path}"])


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
    for wrong in (
        "--minutes=inf",
        "--minutes=-1.0",
        "--rate_seconds=nan",
        "--rate_seconds=-1.0",
        "--steps=201",
        "--seeds=0",
        "--seeds_at_once=0",
        "--score_processes=-1",
        "--set train.beta",
    ):
        with pytest.raises(SystemExit):
            claim4.parse(["--workdir=x", *wrong.split(" ")])
        assert f"error: {wrong}" in capsys.readouterr().err


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
