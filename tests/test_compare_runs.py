"""--mode=report: which runs it finds, what it says of them, what it passes over."""

import pathlib
import re
import statistics
import subprocess
import sys

import pytest

from vae_attn import workdir as workdir_lib
from vae_attn import workdir_scores
from vae_attn.config import default_config
from vae_attn.errors import UserError
from vae_attn.experiments import compare_runs, finished_runs
from vae_attn.experiments.disentanglement import representation
from vae_attn.workdir_scores import Scored

ROOT = pathlib.Path(__file__).resolve().parents[1]
OWN = "pixel_auroc/contrast/conv1"


def leave(folder, score=None, **changes):
    """A folder as a run leaves it."""
    config = default_config()
    config.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    workdir_lib.keep_or_compare(config, folder)
    (folder / "metrics.jsonl").write_text(
        '{"step": 2, "loss": 5.0, "validation_loss": 4.0}\n', encoding="utf-8"
    )
    if score is not None:
        scores = {"contrast/conv1/pixel_auroc": score, "contrast/conv1/pixel_auroc_low": 0.1}
        scores |= {"paper/fused/pixel_auroc": 0.25, "contrast/conv2/pixel_auroc": 0.125}
        workdir_scores.write(folder, scores, Scored.of([2], ["digest"], config))


def rows_of(folder, heading):
    """Cells by the first one of their row; the header's is None's."""
    text = (folder / "report.md").read_text(encoding="utf-8")
    section = text[text.index(f"## {heading}\n") :].split("\n\n")[1]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines()]
    return {None: lines[0]} | {cells[0].strip(): cells for cells in lines[2:]}


def test_table_and_page(tmp_path):
    runs = tmp_path / "runs"
    leave(runs / "a", 0.75, train__beta=0.5)
    leave(runs / "sweep" / "b", 0.875, train__beta=2.0)
    leave(runs / "c", train__beta=4.0)
    (runs / "a" / "report").mkdir()
    (runs / "a" / "report" / "index.html").write_text("page", encoding="utf-8")
    report = runs / "report"
    page = compare_runs.write(f"{runs}/*", report)
    rows = rows_of(report, "Runs")
    assert rows[None] == ["run", "train.beta", OWN, "pixel_auroc/paper/fused"]
    assert rows["a"] == ["a", "0.5", "0.750", "0.250 (best)"]
    assert rows["sweep/b"] == ["sweep/b", "2.0", "0.875 (best)", "0.250 (best)"]
    assert rows["c"][:3] == ["c", "4.0", "not evaluated"]
    assert len(rows) == 4
    assert page == report / "index.html"
    text = page.read_text(encoding="utf-8")
    assert re.findall(r'href="([^"#][^"]*)"', text) == ["../a/report/index.html"]
    assert "Not evaluated: c." in text
    assert "All keys of this run" not in text
    assert text.count("data:image/png") == 1
    # The report itself is no run, and the next one is the same.
    compare_runs.write(f"{runs}/*,{runs}/a", report)
    assert page.read_text(encoding="utf-8") == text


def test_mean_over_seeds_and_their_shared_folder(tmp_path):
    leave(tmp_path / "both", num_seeds=2)
    for seed, score in ((0, 0.5), (1, 0.75)):
        leave(tmp_path / "both" / f"seed_{seed}", score, seed=seed)
        (tmp_path / "both" / f"seed_{seed}" / "metrics.jsonl").unlink()
    lines = ['{"step": 2, "loss": 3.0, "loss/seed_0": 1.0, "loss/seed_1": 5.0}\n']
    (tmp_path / "both" / "metrics.jsonl").write_text("".join(lines), encoding="utf-8")
    leave(tmp_path / "other", 0.625, model__latents=7)
    runs = finished_runs.find(f"{tmp_path}/*", leave_out=tmp_path / "report")
    assert [run.name for run in runs] == ["both/seed_0", "both/seed_1", "other"]
    assert runs[1].curves == {"loss": ([2], [5.0])}
    compare_runs.write(f"{tmp_path}/*", tmp_path / "report")
    assert rows_of(tmp_path / "report", "Runs")[None][:3] == ["run", "seed", "model.latents"]
    rows = rows_of(tmp_path / "report", "Over seeds")
    assert rows[None][:3] == ["seeds", "model.latents", OWN]
    deviation = statistics.stdev([0.5, 0.75])
    assert rows["0, 1"] == ["0, 1", "32", f"0.625 ± {deviation:.3f}", "0.250 ± 0.000"]


def test_scores_of_other_data_are_not_compared(tmp_path):
    leave(tmp_path / "three", 0.5, data__digit=3)
    leave(tmp_path / "one", 0.75, data__digit=1)
    compare_runs.write(f"{tmp_path}/*", tmp_path / "report")
    assert "(best)" not in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("changes", [{"evaluate__mask_size": "model"}, {"evaluate__max_images": 9}])
def test_scores_of_other_masks_or_images_are_not_compared(tmp_path, changes):
    leave(tmp_path / "a", 0.5)
    leave(tmp_path / "b", 0.75, **changes)
    compare_runs.write(f"{tmp_path}/*", tmp_path / "report")
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "(best)" not in text
    assert "differ in evaluate.mask_size or evaluate.max_images are not compared" in text
    leave(tmp_path / "c", 0.625)
    compare_runs.write(f"{tmp_path}/*", tmp_path / "report")
    rows = rows_of(tmp_path / "report", "Runs")
    assert [OWN, f"{0.625:.3f} (best)"] == [rows[None][2], rows["c"][2]]
    assert rows["b"][2] == "0.750"


def test_the_settings_of_the_evaluation_count(tmp_path):
    """A run that was evaluated anew keeps its config.json, and its scores say what they are of."""
    leave(tmp_path / "a", 0.5)
    leave(tmp_path / "b", 0.75)
    config = workdir_lib.read(tmp_path / "b")
    config.evaluate.mask_size = "model"
    scores = workdir_scores.of_run(tmp_path / "b").scores
    workdir_scores.write(tmp_path / "b", scores, Scored.of([2], ["digest"], config))
    compare_runs.write(f"{tmp_path}/*", tmp_path / "report")
    rows = rows_of(tmp_path / "report", "Runs")
    assert rows[None][1] == "evaluate.mask_size"
    assert rows["b"][1:3] == ["model", "0.750"]


def test_scores_of_an_older_checkpoint_are_left_out(tmp_path, caplog):
    leave(tmp_path / "a", 0.5)
    leave(tmp_path / "b", 0.75)
    lines = '{"step": 2, "validation_loss": 4.0}\n{"step": 4, "validation_loss": %s}\n'
    for step in ("2", "4"):
        (tmp_path / "b" / "checkpoints" / step).mkdir(parents=True)
    path = tmp_path / "b" / "metrics.jsonl"
    path.write_text(lines % "5.0", encoding="utf-8")  # step 2 is still the best one
    compare_runs.write(f"{tmp_path}/*", tmp_path / "report")
    assert rows_of(tmp_path / "report", "Runs")["b"][1] == "0.750 (best)"
    path.write_text(lines % "3.0", encoding="utf-8")
    page = compare_runs.write(f"{tmp_path}/*", tmp_path / "report")
    rows = rows_of(tmp_path / "report", "Runs")
    assert rows["b"][1] == "not evaluated"
    assert rows["a"][1] == "0.500"
    reason = "are of another model, that of step 2: --mode=evaluate scores the model that is there"
    assert reason in page.read_text(encoding="utf-8")
    assert reason in caplog.text


def test_broken_runs_are_named_and_the_others_shown(tmp_path, caplog):
    leave(tmp_path / "good", 0.5)
    for name in ("config", "scores", "curves"):
        leave(tmp_path / name, 0.5)
    (tmp_path / "config" / "config.json").write_text("{", encoding="utf-8")
    (tmp_path / "scores" / "evaluation" / "metrics.json").write_text(
        '{"contrast/co', encoding="utf-8"
    )
    (tmp_path / "curves" / "metrics.jsonl").write_text("[\n", encoding="utf-8")
    caplog.set_level("WARNING", "vae_attn")
    compare_runs.write(f"{tmp_path}/*", tmp_path / "report")
    for name in ("config/config.json", "scores/evaluation/metrics.json", "curves/metrics.jsonl"):
        assert f"{tmp_path / name} cannot be read" in caplog.text
    rows = rows_of(tmp_path / "report", "Runs")
    assert rows.keys() == {None, "good", "scores", "curves"}
    assert rows["scores"][1] == "not evaluated"


def test_factor_runs(tmp_path):
    for name, score in (("a", 0.5), ("b", 0.75)):
        shapes = {"data__name": "dsprites", "data__image_size": 64, "model__name": "dsprites"}
        leave(tmp_path / name, **shapes, train__beta=score)
        scores = {"factor_vae": score, "mig": 0.125, "reconstruction": 30.0}
        scored = Scored.of([2], ["digest"], default_config())
        workdir_scores.write(tmp_path / name, scores, scored)
    compare_runs.write(f"{tmp_path}/*", tmp_path / "report")
    rows = rows_of(tmp_path / "report", "Runs")
    assert rows[None] == ["run", "train.beta", "factor_vae", "mig"]
    assert rows["b"] == ["b", "0.75", "0.750 (best)", "0.125 (best)"]
    assert "factor_vae" in representation.main_scores(default_config(), scores)


def test_a_single_run(tmp_path):
    leave(tmp_path / "a", 0.5)
    compare_runs.write(str(tmp_path / "a"), tmp_path / "report")
    assert rows_of(tmp_path / "report", "Runs")["a"] == ["a", "0.500", "0.250"]


def test_what_cannot_be_compared(tmp_path):
    with pytest.raises(UserError, match=r"no/\* holds no run that can be read"):
        compare_runs.write(f"{tmp_path}/no/*", tmp_path / "report")
    leave(tmp_path / "a")
    with pytest.raises(UserError, match="is a run: give another folder"):
        compare_runs.write(f"{tmp_path}/*", tmp_path / "a")


def test_a_report_that_cannot_be_written(tmp_path):
    leave(tmp_path / "runs" / "a", 0.5)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file/report or the runs cannot be read or written"):
        compare_runs.write(f"{tmp_path}/runs/*", tmp_path / "file" / "report")


def test_the_home_folder_in_a_quoted_pattern(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    leave(tmp_path / "runs" / "a", 0.5)
    assert compare_runs.write("~/runs/*", tmp_path / "report").exists()


def run_main(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "vae_attn.main", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_command(tmp_path):
    leave(tmp_path / "runs" / "a", 0.5)
    options = [f"--workdirs={tmp_path}/runs/*", f"--workdir={tmp_path}/report"]
    result = run_main("--mode=report", *options)
    assert result.returncode == 0, result.stderr
    assert f"all runs: {tmp_path}/report/index.html" in result.stderr
    assert (tmp_path / "report" / "report.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=report", "--config=configs/digits.py"], "leave out --config"),
        (
            ["--config=configs/digits.py", "--workdirs=a"],
            "--workdirs is for --mode=report, and not",
        ),
        (["--mode=report", "--workdirs=no/such"], "--workdirs=no/such holds no run"),
    ],
)
def test_one_clear_sentence(arguments, message):
    result = run_main(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
