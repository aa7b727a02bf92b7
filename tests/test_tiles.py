"""Large images in tiles: nothing is lost, no seam is seen, and memory stays bounded."""

import itertools
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from tiny_run import trained

import vae_attn
from vae_attn.errors import UserError
from vae_attn.experiments import run as experiment
from vae_attn.experiments.anomaly import tiles
from vae_attn.experiments.anomaly.calibration import MapStatistics

RNG = np.random.default_rng(0)
SIDE = 16


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        workdir = tmp_path_factory.mktemp("runs") / "tiny"
        config, _ = trained(patch, workdir)
        yield config, workdir


def first_channel(pixels):
    """Maps that are the tiles' own pixels, so that an image's map is the image."""
    maps = pixels[..., 0].astype(np.float32)
    return maps, maps.max(axis=(1, 2))


@pytest.mark.parametrize("size", [(16, 16), (16, 17), (33, 70), (100, 41)])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.6])
def test_local_maps_come_back_as_they_are(size, overlap):
    image = RNG.integers(0, 256, (*size, 1), dtype=np.uint8)
    found = tiles.blend(first_channel, image, side=SIDE, batch_size=3, overlap=overlap)
    np.testing.assert_allclose(found.map, image[..., 0], rtol=1e-5)
    assert found.map.dtype == np.float32
    assert found.score == pytest.approx(image.max(), rel=1e-5)
    for (top, left), score in zip(found.corners, found.scores, strict=True):
        assert score == image[top : top + SIDE, left : left + SIDE].max()


@pytest.mark.parametrize("length", [16, 17, 31, 64, 1000])
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
def test_tiles_cover_an_axis_and_overlap(length, overlap):
    begin = tiles.starts(length, SIDE, overlap)
    assert begin[0] == 0
    assert begin[-1] == length - SIDE
    assert all(0 < b - a <= max(1, SIDE * (1 - overlap)) for a, b in itertools.pairwise(begin))


def test_no_seams():
    """Tiles that contradict each other most, 0 beside 1: neighbouring pixels differ little."""

    def checkers(pixels):
        values = np.arange(len(pixels)) % 2 + np.zeros((SIDE, SIDE, 1))
        return np.float32(values.transpose(2, 0, 1)), np.zeros(len(pixels), np.float32)

    image = np.zeros((SIDE, 10 * SIDE, 1), np.uint8)
    found = tiles.blend(checkers, image, side=SIDE, batch_size=100, overlap=0.25)
    assert (found.map.min(), found.map.max()) == (0, 1)
    steps = np.abs(np.diff(found.map, axis=1)).max()
    assert steps <= 1 / (0.25 * SIDE)
    cut = tiles.blend(checkers, image, side=SIDE, batch_size=100, overlap=0.0)
    assert np.abs(np.diff(cut.map, axis=1)).max() == 1


def test_what_cannot_be():
    small = np.zeros((15, 40, 1), np.uint8)
    with pytest.raises(UserError, match=r"15 x 40 pixels is smaller than a tile, .* model's 16"):
        tiles.blend(first_channel, small, side=SIDE, batch_size=1)
    with pytest.raises(UserError, match=r"overlap=1.0 must be 0 or more, and less than 1"):
        tiles.blend(
            first_channel, np.zeros((20, 20, 1), np.uint8), side=SIDE, batch_size=1, overlap=1.0
        )


def test_memory_is_bounded():
    """4,000 x 3,000 pixels: beside image and map, a few batches of tiles."""
    image = np.zeros((3000, 4000, 3), np.uint8)
    image[1500:1600, 2000:2100] = 200
    tracemalloc.start()
    try:
        found = tiles.blend(first_channel, image, side=256, batch_size=8)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.map.shape == (3000, 4000)
    assert found.score == pytest.approx(200, rel=1e-5)
    maps = 4 * 3000 * 4000
    assert peak < maps + 8 * 256 * 256 * (3 + 4 * 3) + 2**23


def test_free_of_place():
    maps = RNG.gamma(2.0, size=(9, 6, 5)).astype(np.float32)
    measured = {("contrast", "conv1"): MapStatistics.measure([maps])}
    free = tiles.free_of_place(measured)["contrast", "conv1"]
    np.testing.assert_allclose(free.mean, np.full((6, 5), maps.mean()), rtol=1e-5)
    np.testing.assert_allclose(free.std, np.full((6, 5), maps.std()), rtol=1e-5)


def test_explainer_of_a_run(run):
    """Each tile gets what the explainer gives it alone; a small image its very map."""
    explainer = vae_attn.load(run[1])
    image = RNG.integers(0, 256, (40, 61, 3), dtype=np.uint8)
    found = explainer.tiled(image)
    crops = np.stack([image[t : t + 28, u : u + 28] for t, u in found.corners])
    maps, scores = explainer(crops)
    np.testing.assert_allclose(found.scores, scores, rtol=1e-4)
    weights = np.outer(tiles.window(28), tiles.window(28))
    total, weight = np.zeros((2, 40, 61))
    for (top, left), map_ in zip(found.corners, maps, strict=True):
        total[top : top + 28, left : left + 28] += weights * map_
        weight[top : top + 28, left : left + 28] += weights
    np.testing.assert_allclose(found.map, total / weight, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(explainer.tiled(image[:28, :28]).map, maps[0], rtol=1e-3, atol=1e-5)
    free = explainer.tiled(image, calibrated="free")
    assert not np.allclose(free.map, found.map, rtol=0.01)
    with pytest.raises(UserError, match="calibrated='x' must be place or free"):
        explainer.tiled(image, calibrated="x")


@pytest.mark.parametrize("kind", ["place", "free"])
def test_files_of_ones_own(kind, run, tmp_path):
    config, workdir = run
    large = RNG.integers(0, 256, (45, 70, 3), dtype=np.uint8)
    Image.fromarray(large).save(tmp_path / "large.png")
    Image.fromarray(large[:20]).save(tmp_path / "low.png")
    with pytest.raises(UserError, match=r"1 of 2 images .*\n.*low.png: an image of 20 x 70 pixels"):
        experiment.run(config, workdir, mode="explain", images=str(tmp_path), tiles=kind)
    folder = workdir / "explained"
    (row,) = map(json.loads, (folder / "results.jsonl").read_text(encoding="utf-8").splitlines())
    explainer = vae_attn.load(workdir)
    found = explainer.tiled(large, calibrated=kind)
    np.testing.assert_allclose(
        np.load(folder / row["files"]["map_values"]), found.map, rtol=1e-3, atol=1e-5
    )
    with Image.open(folder / row["files"]["overlay"]) as overlay:
        assert overlay.size == (70, 45)
    assert row["score"] == pytest.approx(found.score, rel=1e-3)
    assert row["abnormal"] is None
    assert row["tiles"]["count"] == len(found.scores)
    top, left = row["tiles"]["explained"]
    assert [top, left] == found.corners[found.scores.argmax()].tolist()
    tile = large[None, top : top + 28, left : left + 28]
    grey = np.asarray(Image.fromarray(tile[0]).convert("L"))[None, ..., None]
    latents = explainer.deviating_latents(grey, count=8)
    assert [one["latent"] for one in row["latents"]] == latents.latents[0].tolist()
    threshold = explainer.calibration.image_threshold
    if kind == "free":
        assert row["threshold"] is row["tiles"]["above_threshold"] is None
    else:
        assert row["threshold"] == threshold
        assert len(row["tiles"]["above_threshold"]) == (found.scores > threshold).sum()
