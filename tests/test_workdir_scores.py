"""Scores are shown beside the model that they belong to, and beside no other."""

import json
import types
from typing import ClassVar

import child_runs
import numpy as np
import pytest
from small_data import small_data

from vae_attn import workdir as workdir_lib
from vae_attn import workdir_scores
from vae_attn.config import default_config
from vae_attn.errors import UserError
from vae_attn.experiments import run as run_lib
from vae_attn.experiments.protocol import Content, Experiment, Trained
from vae_attn.reporting.tables import Table
from vae_attn.training.checkpoints import digest
from vae_attn.workdir import DataRecord
from vae_attn.workdir_scores import Scored

SCORES = {"contrast/conv1/iou": 0.25}
ANOTHER = "are of another model, that of step {}: --mode=evaluate scores the model that is there"


def model(n):
    return {"params": {"kernel": np.full(3, n, np.float32)}}


def trained(workdir, n, *, step):
    return Trained(default_config(), workdir, model(n), step)


def keep(workdir, *steps, losses=()):
    """Folders of checkpoints, and validation losses."""
    for step in steps:
        (workdir / "checkpoints" / str(step)).mkdir(parents=True)
    rows = [{"step": s, "validation_loss": v} for s, v in zip(steps, losses, strict=True)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (workdir / "metrics.jsonl").write_text(lines, encoding="utf-8")


class Blocks(Experiment):
    """An experiment without a model, as far as the blocks needs it."""

    data = types.SimpleNamespace(name="blocks")
    panels: ClassVar = {}
    curves_caption = ""
    load = use = evaluate = score_checkpoint = None

    @staticmethod
    def main_scores(config, scores):
        return {}

    def tables(self, scores, config):
        return [Table("Scores", [["mask size", "iou"], [config.evaluate.mask_size, "0.25"]], "")]

    def limits(self, workdir):
        return ()

    def content(self, trained, scores, workdir):
        self.given = scores
        return Content(summary="About.", drawn={})


def report(blocks, workdir, *models):
    path = run_lib._report(blocks, default_config(), workdir, models)
    return path.read_text(encoding="utf-8")


def keep_data(workdir):
    """What its card says of the run's data."""
    DataRecord.of(small_data(np.zeros((6, 8, 8, 1), np.uint8)), "data").keep(workdir)


def test_the_page_shows_scores_of_its_own_model_alone(tmp_path):
    keep_data(tmp_path)
    blocks, short, longer = Blocks(), trained(tmp_path, 1, step=30), trained(tmp_path, 2, step=60)
    config = default_config()
    config.evaluate.mask_size = "model"
    run_lib._write_scores(blocks, config, tmp_path, SCORES, [short])
    text = (tmp_path / "evaluation" / "table.md").read_text(encoding="utf-8")
    assert text.startswith("# blocks, step 30\n")
    page = report(blocks, tmp_path, short)
    assert blocks.given == SCORES
    assert "<td>model</td>" in page.replace('<td class="text">', "<td>")  # as it was scored
    assert "No scores" not in page
    page = report(blocks, tmp_path, longer)
    assert blocks.given == {}
    assert "0.25" not in page.partition("<h2")[2].partition("Config")[0]
    assert "No scores: the scores in" in page
    assert ANOTHER.format(30) in page


def test_means_belong_to_all_seeds(tmp_path):
    config = default_config()
    config.num_seeds = 2
    models = [trained(tmp_path / f"seed_{n}", n, step=30 + n) for n in (0, 1)]
    keep_data(tmp_path)
    run_lib._write_scores(Blocks(), config, tmp_path, SCORES, models)
    digests = [digest(one.variables) for one in models]
    for n in (0, 1):
        keep(tmp_path / f"seed_{n}", 30, 31, losses=(1.0, 2.0))
    for given in ([], digests[:1], digests):
        assert workdir_scores.of_run(tmp_path, given).scores == SCORES
    assert not workdir_scores.of_run(tmp_path, [digests[0], "other"]).scores
    assert not workdir_scores.of_run(tmp_path, ["other"]).scores
    (tmp_path / "seed_1" / "checkpoints" / "60").mkdir()
    (tmp_path / "seed_1" / "checkpoints" / "31").rmdir()
    found = workdir_scores.of_run(tmp_path, digests[:1])  # as to explain: the first seed's alone
    assert not found.scores
    assert found.missing.endswith(ANOTHER.format("30, 31"))


@pytest.mark.parametrize(
    ("scored", "steps", "losses", "stands"),
    [
        (30, (), (), True),  # no checkpoint is left
        (30, (30, 60), (1.0, 2.0), True),  # the best
        (60, (30, 60), (1.0, 2.0), True),  # the newest
        (30, (30, 60), (2.0, 2.0), False),  # the latest of equals is the best
        (30, (30, 60, 90), (3.0, 2.0, 4.0), False),  # kept, though neither
        (30, (60, 90), (2.0, 2.0), False),
    ],
)
def test_without_the_model_the_checkpoints_tell(tmp_path, scored, steps, losses, stands):
    keep(tmp_path, *steps, losses=losses)
    workdir_scores.write(tmp_path, SCORES, Scored.of([scored], ["digest"], default_config()))
    found = workdir_scores.of_run(tmp_path)
    assert (found.scores == SCORES) == stands
    assert bool(found.missing) != stands


def test_scores_without_a_whole_record_are_not_shown(tmp_path):
    workdir_scores.write(tmp_path, SCORES, Scored.of([30], ["digest"], default_config()))
    path = tmp_path / "evaluation" / "scored.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    unknown = whole["settings"] | {"evaluate": {"nonsense": 1}}
    for broken in (
        "{", "[]", *(json.dumps(whole | changed) for changed in (
            {"steps": []}, {"parameters": ["a", "b"]}, {"settings": {}}, {"settings": unknown},
            {"metrics": "of a command that was killed between the two files"},
        )),
    ):  # fmt: skip
        path.write_text(broken, encoding="utf-8")
        found = workdir_scores.of_run(tmp_path)
        assert found.scores == {}, broken
        assert "does not say which model its scores are of: --mode=evaluate" in found.missing
    (tmp_path / "evaluation" / "metrics.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"metrics.json cannot be read"):
        workdir_scores.of_run(tmp_path)
    (tmp_path / "evaluation" / "metrics.json").unlink()
    assert workdir_scores.of_run(tmp_path) == workdir_scores.Found({})  # nothing to tell


def test_a_training_that_begins_anew_disowns_older_scores(tmp_path):
    config = child_runs.config_of()
    workdir_scores.write(tmp_path, SCORES, Scored.of([2], ["digest"], config))
    record = DataRecord("fingerprint", 2, 1, "blocks", "data")
    with workdir_lib.WorkdirLock() as lock:
        workdir_lib.begin(config, tmp_path, mode="train", lock=lock, total_steps=2, data=record)
    assert "does not say" in workdir_scores.of_run(tmp_path).missing
