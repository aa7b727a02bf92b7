"""One process or several, one device or many: the same training."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import small_models

from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.training import distributed, loop
from vae_attn.training.telemetry import read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]
TESTS = ROOT / "tests"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start(program, devices):
    flags = f"--xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, *map(str, program)],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def start_several(program, *, processes, devices):
    """The program in several processes, through launch/local.py."""
    code = (
        "import sys; sys.path.insert(0, 'launch'); import local;"
        f"sys.exit(local.run(sys.argv[1:], processes={processes}, devices={devices}))"
    )
    return start(["-c", code, sys.executable, *program], devices)


def finish(process):
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_same_losses_and_parameters_on_any_devices_of_any_processes(tmp_path):
    """VAE, ResNet VAE with batch normalisation, AD-FactorVAE; pmap and shard_map."""
    program = TESTS / "few_steps.py"
    layouts = {
        "1x1": start([program, tmp_path / "1x1.npz"], 1),
        "1x8": start([program, tmp_path / "1x8.npz"], 8),
        "2x4": start_several([program, tmp_path / "2x4.npz"], processes=2, devices=4),
    }
    for layout, process in layouts.items():
        processes, devices = layout.split("x")
        assert finish(process).count(f"{processes} x {devices} done") == int(processes)
    results = {layout: np.load(tmp_path / f"{layout}.npz") for layout in layouts}
    expected = results["1x1"]
    assert {name.split("/")[0] for name in expected} == {"vae", "resnet", "factor"}
    for layout in ("1x8", "2x4"):
        assert len(results[layout].files) == 2 * len(expected.files)
        for name, found in results[layout].items():
            reference = expected[name.replace("/shard_map/", "/pmap/")]
            np.testing.assert_allclose(
                found, reference, rtol=1e-4, atol=1e-5, err_msg=f"{layout} {name}"
            )


@pytest.fixture
def small():
    """A config of a small run on digits, and its flags for `small_run.py`."""
    values = small_models.values("digits") | {
        "train.steps": 6,
        "train.checkpoint_every": 3,
        "train.log_every": 1,
        "evaluate.max_images": 20,
        "evaluate.styles": ("contrast",),
        "evaluate.layers": ("conv1",),
        "attention.projection_steps": 1,
    }
    config = load(ROOT / "configs" / "digits.py").get_config()
    config.update_from_flattened_dict(values)
    flags = [f"--config.{key}={value}" for key, value in values.items()]
    return config, ["--config=configs/digits.py", *flags]


@pytest.mark.slow
def test_two_processes_train_and_evaluate_with_the_figures_of_one(small, tmp_path):
    config, flags = small
    program = [TESTS / "small_run.py", *flags, f"--workdir={tmp_path / 'two'}"]
    process = start_several(program, processes=2, devices=2)
    experiment.run(config, tmp_path / "one", mode="all")
    output = finish(process)
    for text in ("[0] ", "step 6/6", "scores:", "pictures and tables:"):
        assert output.count(text) >= 1, output
    # Logs, metrics, scores and the report come from process 0 alone; both write the checkpoint.
    arrays = tmp_path / "two" / "checkpoints" / "6" / "state"
    assert all(list((arrays / f"ocdbt.process_{n}" / "d").iterdir()) for n in (0, 1))
    assert not [x for x in output.splitlines() if x.startswith("[1]") and "step" in x], output
    one, two = (read_metrics(tmp_path / name) for name in ("one", "two"))
    for name in ("loss", "kl", "reconstruction", "validation_loss"):
        assert two[name][0] == one[name][0]
        np.testing.assert_allclose(two[name][1], one[name][1], rtol=1e-4)
    scores = [
        json.loads((tmp_path / name / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
        for name in ("one", "two")
    ]
    assert scores[0].keys() == scores[1].keys()
    for name, value in scores[0].items():
        assert scores[1][name] == pytest.approx(value, rel=2e-2, abs=2e-2), name
    assert (tmp_path / "two" / "report" / "index.html").stat().st_size > 0
    # What two processes wrote is read by one.
    states = [loop.restore(config, tmp_path / name, which="latest") for name in ("one", "two")]
    assert states[1].step == 6
    np.testing.assert_allclose(
        states[1].params["encoder"]["conv1"]["kernel"],
        states[0].params["encoder"]["conv1"]["kernel"],
        rtol=1e-3,
        atol=1e-5,
    )


@pytest.mark.slow
def test_four_processes_resume_as_two(tmp_path):
    """From the last checkpoint, what came after being lost; as the run would have gone on."""
    flags = [
        *("--config=configs/digits.py", "--mode=train", "--config.train.batch_size=8"),
        *("--config.train.steps=6", "--config.train.checkpoint_every=2"),
        *("--config.train.log_every=1", *small_models.flags("digits")),
    ]
    program = [TESTS / "small_run.py", *flags, f"--workdir={tmp_path / 'four'}"]
    finish(start_several(program, processes=4, devices=1))
    two = shutil.copytree(tmp_path / "four", tmp_path / "two")
    shutil.rmtree(two / "checkpoints" / "6")
    program = [TESTS / "small_run.py", *flags, f"--workdir={two}"]
    assert "resuming from step 4" in finish(start_several(program, processes=2, devices=2))
    found, expected = (read_metrics(tmp_path / name) for name in ("two", "four"))
    assert found["loss"][0] == expected["loss"][0] == [1, 2, 3, 4, 5, 6]
    np.testing.assert_allclose(found["loss"][1], expected["loss"][1], rtol=1e-4)


def test_workdirs_that_are_not_shared(small, tmp_path):
    """Every process has a folder of its own, as on hosts that share no file system."""
    _, flags = small
    prologue = (
        "import runpy, sys; from vae_attn.training import distributed;"
        f"sys.path.insert(0, {str(TESTS)!r});"
        "distributed._FILE_TIMEOUT = 1;"
        f"sys.argv.append({f'--workdir={tmp_path}/'!r} + sys.argv[-1]);"
        f"runpy.run_path({str(TESTS / 'small_run.py')!r}, run_name='__main__')"
    )
    process = start_several(["-c", prologue, *flags, "--mode=train"], processes=2, devices=1)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 2, output
    assert "the processes differ in whether they see the workdir's config.json: give" in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("*/checkpoints/[0-9]*"))


@pytest.mark.slow
def test_a_process_that_comes_late_is_waited_for():
    """As one that has yet to decode its images; the collectives of CPUs wait 30 seconds."""
    code = (
        "import sys, time; from vae_attn.training import distributed;"
        "address, number, rank = (argument.split('=')[1] for argument in sys.argv[1:]);"
        "distributed.initialize(coordinator_address=address, num_processes=int(number),"
        " process_id=int(rank));"
        "time.sleep(0 if distributed.is_main() else 35);"
        "print(distributed.any_process(rank == '1'))"
    )
    output = finish(start_several(["-c", code], processes=2, devices=1))
    assert output.count("True") == 2, output


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_processes": 2}, "--coordinator_address, --process_id missing: give all of"),
        (
            {"coordinator_address": "localhost:1", "num_processes": 2, "process_id": 2},
            "the processes of this run cannot be joined",
        ),
    ],
)
def test_processes_that_cannot_be_joined(given, message, monkeypatch):
    monkeypatch.setattr("jax._src.xla_bridge.backends_are_initialized", lambda: False)
    with pytest.raises(UserError, match=message):
        distributed.initialize(**given)


def test_single_process():
    assert distributed.is_main()
    distributed.barrier("alone")
