"""Stacks of frames and scores smoothed over time, each by its formula."""

import numpy as np
import pytest
import synthetic

from vae_attn.config import default_config
from vae_attn.data import frame_stacks, ucsd_ped1
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments import validation
from vae_attn.experiments.anomaly import frame_scores
from vae_attn.models import build

RNG = np.random.default_rng(0)


def test_differences_are_to_the_frames_before():
    frames = RNG.integers(0, 256, (6, 4, 5, 1), dtype=np.uint8)
    # Clip a has frames 1, 2, 3 and 7; of b there are two.
    places = [("a", 1), ("a", 2), ("a", 3), ("b", 1), ("b", 2), ("a", 7)]
    found = frame_stacks.stacks(frames, places, 3)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[..., 0], frames[..., 0])
    values = frames[..., 0].astype(int)
    # The one before, else the one after; two before, else two after; else itself.
    partners = [(1, 2), (0, 1), (1, 0), (4, 3), (3, 4), (5, 5)]
    for n, (one, two) in enumerate(partners):
        np.testing.assert_array_equal(found[n, ..., 1], np.abs(values[n] - values[one]))
        np.testing.assert_array_equal(found[n, ..., 2], np.abs(values[n] - values[two]))
    assert frame_stacks.stacks(frames, places, 1) is frames


def test_stacks_of_the_clips(tmp_path):
    synthetic.write_ucsd_ped1(tmp_path / "twin")
    options = {"image_size": 32, "cache_dir": tmp_path / "cache"}
    single = ucsd_ped1.load(tmp_path / "twin", **options)
    stacked = ucsd_ped1.load(tmp_path / "twin", frames=3, **options)
    assert stacked.image_shape == (32, 32, 3)
    for part in ("train", "validation"):
        np.testing.assert_array_equal(getattr(stacked, part)[..., :1], getattr(single, part))
    names = dict(zip(single.test.names, single.test.images[..., 0].astype(int), strict=True))
    assert stacked.test.names == single.test.names
    checked = 0
    for name, image in zip(stacked.test.names, stacked.test.images, strict=True):
        clip, number = name.split("/")
        before = f"{clip}/{int(number) - 1:03d}"
        if before in names:
            np.testing.assert_array_equal(image[..., 1], np.abs(names[name] - names[before]))
            checked += 1
    assert checked > len(names) / 2
    assert "differences to the 2 before it" in stacked.scores_note


def test_scores_are_smoothed_within_their_clip():
    names = ["a/001", "a/002", "b/001", "a/005", "b/002"]
    scores = np.array([1.0, 0.0, 5.0, 2.0, 7.0], np.float32)
    found = frame_scores.smoothed(scores, names, 2.0)
    for n, name in enumerate(names):
        clip, time = name.split("/")
        total = weights = 0.0
        for other, score in zip(names, scores, strict=True):
            if other.startswith(clip):
                weight = np.exp(-((int(time) - int(other.split("/")[1])) ** 2) / 8)
                total, weights = total + weight * score, weights + weight
        assert found[n] == pytest.approx(total / weights, rel=1e-6)


def test_what_frames_need(tmp_path):
    config = default_config()
    config.data.name, config.model.name, config.data.image_size = "ucsd_ped1", "ucsd_ped1", 100
    config.data.frames = 3
    with pytest.raises(UserError, match=r"data.frames=3 must be 1 unless .* data.channels is the"):
        validation.validate(config)
    config.data.channels = 3
    validation.validate(config)
    with pytest.raises(UserError, match="which no file holds"):
        experiment.run(config, tmp_path, mode="explain", images="photos")
    config = default_config()
    config.evaluate.smooth_frames = 2.0
    with pytest.raises(UserError, match=r"smooth_frames=2\.0 must be 0 or more; 0 unless data"):
        validation.validate(config)
    assert build.build("ucsd_ped1", image_size=100, channels=3, latents=2).image_shape[2] == 3
