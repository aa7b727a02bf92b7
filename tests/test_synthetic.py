"""The drawn twins: official layouts, same seed same bytes, defects where the masks say."""

import hashlib
import pathlib

import numpy as np
import pytest
from PIL import Image

from vae_attn.data import synthetic
from vae_attn.errors import UserError

WRITERS = {"ucsd_ped1": synthetic.write_ucsd_ped1, "mvtec_ad": synthetic.write_mvtec_ad}


def _digests(root: pathlib.Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def twins(tmp_path_factory) -> dict[str, pathlib.Path]:
    root = tmp_path_factory.mktemp("twins")
    for name, write in WRITERS.items():
        write(root / name, small=True)
    return {name: root / name for name in WRITERS}


@pytest.mark.parametrize("name", WRITERS)
def test_same_seed_same_bytes(twins, tmp_path, name):
    assert synthetic.main([name, str(tmp_path / "again"), "--small"]) == 0
    assert _digests(tmp_path / "again") == _digests(twins[name])
    WRITERS[name](tmp_path / "other", small=True, seed=1)
    first, other = _digests(twins[name]), _digests(tmp_path / "other")
    pictures = {path for path in first if path.endswith((".png", ".tif"))}
    train = {path for path in pictures if "rain" in path}
    assert all(first[path] != other[path] for path in train)


@pytest.mark.parametrize("name", WRITERS)
def test_marked_and_nothing_else_left(twins, name):
    folders = [path for path in twins[name].iterdir() if path.is_dir()]
    assert folders
    assert all((folder / "SYNTHETIC").is_file() for folder in (twins[name], *folders))
    assert {path.name for path in twins[name].parent.iterdir()} == set(WRITERS)


def test_ped1_layout(twins):
    root = twins["ucsd_ped1"] / "UCSDped1"
    assert sorted(path.name for path in root.iterdir()) == ["SYNTHETIC", "Test", "Train"]
    assert {path.name for path in (root / "Train").iterdir()} == {
        "Train001",
        "Train002",
        "Train003",
    }
    clips = {f"Test{i:03d}" for i in range(1, 7)}
    masks = {"Test002_gt", "Test004_gt", "Test006_gt"}
    assert {path.name for path in (root / "Test").iterdir()} == clips | masks | {"UCSDped1.m"}
    for folder, suffix, mode in (("Test002", "tif", "L"), ("Test002_gt", "bmp", "L")):
        names = sorted(path.name for path in (root / "Test" / folder).iterdir())
        assert names == [f"{i:03d}.{suffix}" for i in range(1, 13)]
        with Image.open(root / "Test" / folder / names[0]) as picture:
            assert (picture.mode, picture.size) == (mode, (238, 158))
    lines = (root / "Test/UCSDped1.m").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "TestVideoFile = {};"
    assert len(lines) == 7
    assert any("," in line for line in lines)  # several ranges in one clip
    levels = {v for path in root.glob("Test/*_gt/*.bmp") for v in np.unique(Image.open(path))}
    assert levels == {0, 255}


def test_mvtec_layout(twins):
    root = twins["mvtec_ad"]
    names = {path.name for path in root.iterdir()}
    assert names == {"SYNTHETIC", "carpet", "hazelnut", "grid"}
    for category, mode in (("carpet", "RGB"), ("hazelnut", "RGB"), ("grid", "L")):
        with Image.open(root / category / "train/good/000.png") as picture:
            assert picture.mode == mode
        for defect in ("hole", "scratch", "stain"):
            tests = sorted(p.stem for p in (root / category / "test" / defect).iterdir())
            masks = sorted(p.name for p in (root / category / "ground_truth" / defect).iterdir())
            assert masks == [f"{stem}_mask.png" for stem in tests]
            with Image.open(root / category / "ground_truth" / defect / masks[0]) as mask:
                assert mask.mode == "L"
                assert set(np.unique(mask)) == {0, 255}


def test_grid_defects_are_only_where_the_mask_says(twins):
    """A hole is darker inside its mask than anything nearby; outside, the mesh is untouched."""
    root = twins["mvtec_ad"] / "grid"
    normal = [np.asarray(Image.open(path)) for path in root.glob("train/good/*.png")]
    for path in sorted(root.glob("test/hole/*.png")):
        image = np.asarray(Image.open(path)).astype(int)
        mask = np.asarray(Image.open(root / "ground_truth/hole" / f"{path.stem}_mask.png")) > 0
        assert 0.002 < mask.mean() < 0.2
        assert image[mask].mean() < 60 < np.percentile(normal, 1)
        assert image[~mask].min() >= np.min(normal) - 10


def test_moving_intruder_is_where_the_mask_says(twins):
    """The same frame differs from its clip's median most inside the mask."""
    root = twins["ucsd_ped1"] / "UCSDped1/Test"
    inside, outside = [], []
    for folder in sorted(root.glob("Test???_gt")):
        clip = root / folder.name.removesuffix("_gt")
        frames = np.stack([Image.open(path) for path in sorted(clip.iterdir())]).astype(float)
        masks = np.stack([Image.open(path) for path in sorted(folder.iterdir())]) > 0
        change = np.abs(frames - np.median(frames, axis=0))
        inside.append(change[masks])
        outside.append(change[~masks])
    assert np.mean(np.concatenate(inside)) > 10 * np.mean(np.concatenate(outside))


def test_a_folder_in_use_is_left_alone(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/mine.png").write_text("mine", encoding="utf-8")
    with pytest.raises(UserError, match="photos: is not an empty folder"):
        synthetic.write_mvtec_ad(tmp_path / "photos", small=True)
    assert synthetic.main(["mvtec_ad", str(tmp_path / "photos"), "--small"]) == 2
    assert "is not an empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["photos", "mine.png"]


def test_an_unwritable_place_is_told(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(UserError, match="cannot be written"):
        synthetic.write_ucsd_ped1(tmp_path / "file" / "out", small=True)


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(folder, **_):
        (folder / "carpet").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(synthetic.synthetic_surfaces, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.write_mvtec_ad(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
