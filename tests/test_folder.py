"""One's own folder: what loads, and the message for one that does not."""

import pathlib
import shutil

import numpy as np
import pytest
from PIL import Image

from vae_attn.data import folder
from vae_attn.errors import UserError

SIZE = 16


def _image(path: pathlib.Path, level: int, *, mode: str = "RGB", sides=(24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, sides, level if mode == "L" else (level, 0, 255 - level)).save(path)


def _mask(path: pathlib.Path, *, sides=(24, 20), box=(4, 4, 16, 12)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", sides)
    if box:
        mask.paste(255, box)
    mask.save(path)


@pytest.fixture
def root(tmp_path) -> pathlib.Path:
    """A sound data set: 10 training images, 2 good, 2 with a crack, 3 with a dent."""
    root = tmp_path / "screws"
    for i in range(10):
        _image(root / f"train/good/{i:03d}.png", 10 * i)
    for i in range(2):
        _image(root / f"test/good/{i:03d}.png", 100 + i)
        _image(root / f"test/crack/{i:03d}.png", 110 + i)
        _mask(root / f"ground_truth/crack/{i:03d}_mask.png", box=(0, 0, 12 + 6 * i, 10))
    for i in range(3):
        _image(root / f"test/dent/{i:03d}.png", 120 + i)
        _mask(root / f"ground_truth/dent/{i:03d}_mask.png", box=(0, 10, 24, 20))
    return root


def _load(root: pathlib.Path, **options):
    options.setdefault("cache_dir", root.parent / "cache")
    return folder.load(root, image_size=SIZE, **options)


def _problems(root: pathlib.Path, **options) -> list[str]:
    """The lines of the one error, without its heading; the cache must not hide or keep it."""
    with pytest.raises(UserError) as caught:
        _load(root, **options)
    assert not list((root.parent / "cache").glob("*"))
    heading, *lines = str(caught.value).split("\n  ")
    assert heading.startswith(f"{root}: {len(lines)} problem")
    assert heading.endswith(":")
    return lines


def test_sound_data(root):
    data = _load(root)
    assert data.name == "screws"
    assert data.train.shape == (8, SIZE, SIZE, 3)
    assert data.validation.shape == (2, SIZE, SIZE, 3)
    levels = np.concatenate([data.train, data.validation])[:, 0, 0, 0]
    assert sorted(levels.tolist()) == list(range(0, 100, 10))
    test = data.test
    assert test.class_names == ("good", "crack", "dent")
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    assert test.names[:3] == ("good/000", "good/001", "crack/000")
    assert test.images[:, 0, 0, 0].tolist() == [100, 101, 110, 111, 120, 121, 122]
    assert test.has_mask.all()
    assert not test.masks[:2].any()
    assert test.masks[2].mean() == pytest.approx(0.25)
    assert test.masks[3, : SIZE // 2].mean() == pytest.approx(0.75)
    assert test.masks[4:, SIZE // 2 :].all()
    assert not test.masks[4:, : SIZE // 2].any()


def test_split_follows_the_seed(root):
    def held_out(seed):
        data = _load(root, seed=seed, validation_fraction=0.3)
        return data.validation[:, 0, 0, 0].tolist()

    assert held_out(0) == held_out(0)
    assert len(held_out(0)) == 3
    assert len({tuple(held_out(seed)) for seed in range(5)}) > 1


def test_second_load_decodes_nothing(root, monkeypatch):
    first = _load(root)
    monkeypatch.setattr(folder, "_decode", lambda *_, **__: pytest.fail("decoded again"))
    second = _load(root)
    np.testing.assert_array_equal(first.train, second.train)
    np.testing.assert_array_equal(first.test.masks, second.test.masks)
    assert isinstance(second.test.images, np.memmap)


def test_a_changed_image_is_decoded_anew(root):
    _load(root)
    _image(root / "test/good/000.png", 7)
    assert _load(root).test.images[0, 0, 0, 0] == 7


def test_masks_that_change_places_are_checked_anew(root):
    """The same files under other names are no hit: sizes were compared for the old places."""
    shutil.rmtree(root / "test/dent")
    shutil.rmtree(root / "ground_truth/dent")
    _image(root / "test/crack/001.png", 111, sides=(30, 30))
    _mask(root / "ground_truth/crack/001_mask.png", sides=(30, 30))
    _load(root)
    masks = root / "ground_truth/crack"
    (masks / "000_mask.png").rename(masks / "x.png")
    (masks / "001_mask.png").rename(masks / "000_mask.png")
    (masks / "x.png").rename(masks / "001_mask.png")
    with pytest.raises(UserError, match="2 problems"):
        _load(root)


def test_without_ground_truth(root):
    assert _load(root).missing == ()
    shutil.rmtree(root / "ground_truth")
    data = _load(root)
    (missing,) = data.missing
    assert missing.startswith(f"{root}: pixels are not scored, as there are no masks: add")
    test = data.test
    assert test.masks is None
    assert not test.has_mask.any()
    assert test.labels.tolist() == [0, 0, 1, 1, 2, 2, 2]
    with pytest.raises(ValueError, match="good/000 has no mask"):
        test.full_mask(0)


@pytest.mark.parametrize("empty", [False, True])
def test_only_normal_images_to_train_on(root, empty):
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "ground_truth")
    if empty:
        (root / "test").mkdir()
    for data in (_load(root), _load(root)):  # the second from the cache
        assert (len(data.train), len(data.validation), len(data.test)) == (8, 2, 0)
        assert data.test.images.shape == (0, SIZE, SIZE, 3)
        assert data.test.class_names == ("good",)
        assert data.test.masks is None
        assert len(data.test.sample(3, 0)) == len(data.test.take(np.arange(0))) == 0
        (missing,) = data.missing
        assert missing.startswith(f"{root}: no image is scored, as there are no test images")


def test_only_normal_images_to_test(root):
    for place in ("test/crack", "test/dent", "ground_truth"):
        shutil.rmtree(root / place)
    data = _load(root)
    assert data.test.labels.tolist() == [0, 0]
    (missing,) = data.missing
    assert "only the false alarms are counted" in missing
    assert "test/<defect>" in missing


def test_only_defects_to_test(root):
    shutil.rmtree(root / "test/good")
    data = _load(root)
    assert data.test.labels.tolist() == [1, 1, 2, 2, 2]
    (missing,) = data.missing
    assert "whole images are not scored" in missing
    assert "test/good" in missing


def test_masks_for_defects_that_are_not_there_are_still_reported(root):
    shutil.rmtree(root / "test")
    assert [line.split(":")[0].removeprefix(f"{root}/") for line in _problems(root)] == [
        "ground_truth/crack",
        "ground_truth/dent",
    ]


def test_several_masks_in_a_folder_of_the_images_name(root):
    """As in MVTec LOCO, where each part of a defect has its own mask."""
    (root / "ground_truth/crack/000_mask.png").unlink()
    for n, box in enumerate([(0, 0, 6, 10), (12, 10, 24, 20)]):
        _mask(root / f"ground_truth/crack/000/{n:03d}.png", box=box)
    for test in (_load(root).test, _load(root).test):
        expected = np.zeros((20, 24), bool)
        expected[:10, :6] = expected[10:, 12:] = True
        np.testing.assert_array_equal(test.full_mask(2), expected)
        assert test.masks[2].mean() == pytest.approx(expected.mean())
    black = root / "ground_truth/crack/000/000.png"
    _mask(black, box=None)
    assert _load(root).test.full_mask(2).sum() == 120  # one of them may be black
    _mask(root / "ground_truth/crack/000/001.png", box=None)
    with pytest.raises(UserError, match="ground_truth/crack/000: all black"):
        _load(root)
    _mask(black, sides=(20, 24))
    with pytest.raises(UserError, match=r"000/001\.png: 24 x 20 pixels, but .*000\.png has 20"):
        _load(root)
    _mask(root / "ground_truth/crack/000/001.png", sides=(20, 24))
    with pytest.raises(UserError, match=r"crack/000: 20 x 24 pixels, but .*test/crack/000\.png"):
        _load(root)


def test_folders_of_masks_that_are_empty_doubled_or_left_over(root):
    (root / "ground_truth/crack/001_mask.png").unlink()
    (root / "ground_truth/crack/001").mkdir()
    _mask(root / "ground_truth/dent/000/000.png")
    _mask(root / "ground_truth/dent/009/000.png")
    empty, doubled, extra = _problems(root)
    assert empty.startswith(f"{root}/ground_truth/crack/001: empty")
    assert doubled.startswith(f"{root}/ground_truth/dent/000")
    assert "second mask" in doubled
    assert extra.startswith(f"{root}/ground_truth/dent/009: belongs to no image of")


def test_masks_at_their_own_size(root):
    scratch = np.zeros((20, 24), np.uint8)
    scratch[3, 2:20] = 255
    Image.fromarray(scratch).save(root / "ground_truth/dent/001_mask.png")
    for test in (_load(root).test, _load(root).test):
        assert test.full_mask(0).shape == (20, 24)
        assert not test.full_mask(0).any()
        np.testing.assert_array_equal(test.full_mask(5), scratch > 0)
        np.testing.assert_array_equal(test.take(np.array([5, 0])).full_mask(0), scratch > 0)
        sampled = test.sample(3, seed=1)
        for n, name in enumerate(sampled.names):
            np.testing.assert_array_equal(
                sampled.full_mask(n), test.full_mask(test.names.index(name))
            )
    (root / "ground_truth/dent/001_mask.png").unlink()
    with pytest.raises(UserError, match=r"dent/001_mask\.png: cannot be read"):
        test.full_mask(5)


def test_images_held_out_by_the_data_set_itself(root):
    """As in MVTec LOCO."""
    for i in range(3):
        _image(root / f"validation/good/{i:03d}.png", 200 + i)
    data = _load(root)
    assert data.train[:, 0, 0, 0].tolist() == list(range(0, 100, 10))
    assert data.validation[:, 0, 0, 0].tolist() == [200, 201, 202]
    assert len(data.test) == 7


def test_copies_of_training_images_are_reported(root, caplog):
    shutil.copy(root / "train/good/003.png", root / "test/good/000.png")
    with Image.open(root / "train/good/004.png") as picture:
        picture.save(root / "test/crack/001.bmp")  # the same pixels in another format
    (root / "test/crack/001.png").unlink()
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        _load(root)
        (message,) = caplog.messages
        assert message.startswith(f"{root}: 2 of 7 test images are copies of images in train/good")
        assert "test/good/000.png is train/good/003.png" in message
        assert "test/crack/001.bmp is train/good/004.png" in message


def test_copies_on_both_sides_of_the_split_are_reported(root, caplog):
    for path in root.glob("train/good/*"):
        _image(path, 7)
    _load(root)
    (message,) = caplog.messages
    assert "2 of 2 held-out images are copies" in message


def _deep(path: pathlib.Path, low: int, high: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.linspace(low, high, 20 * 24).round().astype(np.uint16)
    Image.fromarray(levels.reshape(20, 24)).save(path)


def test_deep_images_are_scaled_by_the_training_images(root, caplog):
    caplog.set_level("INFO", "vae_attn")
    for n, path in enumerate(sorted(root.glob("t*/*/*.png"))):
        _deep(path, n, 1400)
    _deep(root / "train/good/003.png", 0, 1500)
    _deep(root / "test/dent/002.png", 0, 40_000)
    for data in (_load(root, channels=1), _load(root, channels=1)):
        assert data.levels == (0, 2047)
        assert {int(image.max()) for image in data.test.images} == {173, 255}
        assert 180 < max(data.train.max(), data.validation.max()) < 188
    levels, cut = caplog.messages[:2]
    assert levels == "files with more than 8 bits: levels 0 to 2047 become 0 to 255"
    assert cut.startswith(f"1 of the 7 test images, such as {root}/test/dent/002.png, ")
    assert caplog.messages[2:] == [levels, cut]


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_images_among_colour(root, channels, caplog):
    caplog.set_level("INFO", "vae_attn")
    for path in root.glob("train/*/*.png"):
        _image(path, 50, mode="L")
    data = _load(root, channels=channels)
    assert data.train.shape[-1] == data.test.images.shape[-1] == channels
    assert (data.train == 50).all()
    hints = [message for message in caplog.messages if "--config.data.channels=1" in message]
    assert len(hints) == (channels == 3)


def test_colour_is_not_called_grey(root, caplog):
    caplog.set_level("INFO", "vae_attn")
    for path in root.glob("train/*/*.png"):
        Image.new("RGB", (24, 20), (50, 50, 51)).save(path)
    _load(root, channels=3)
    assert not any("--config.data.channels=1" in message for message in caplog.messages)


def test_any_format_size_and_mask_name(root):
    for i, suffix in enumerate(["jpg", "JPEG", "bmp", "tif", "TIFF"]):
        _image(root / f"train/good/extra{i}.{suffix}", 60, sides=(40 + i, 31))
    (root / "test/crack/000.png").unlink()
    _image(root / "test/crack/000.bmp", 110, sides=(50, 40))
    (root / "ground_truth/crack/000_mask.png").unlink()
    _mask(root / "ground_truth/crack/000.tif", sides=(50, 40))
    data = _load(root)
    assert len(data.train) + len(data.validation) == 15
    assert data.test.masks[2].any()


def test_hidden_files_are_ignored(root):
    for place in ("train", "train/good", "test", "test/crack", "ground_truth/dent", "."):
        for name in (".DS_Store", "._000.png", "Thumbs.db", "desktop.ini", "000.png~"):
            (root / place / name).write_bytes(b"\0")
    assert len(_load(root).test) == 7


def test_missing_mask(root):
    (root / "ground_truth/dent/001_mask.png").unlink()
    (line,) = _problems(root)
    assert line.startswith(f"{root}/test/dent/001.png: has no mask")
    assert f"{root}/ground_truth/dent/001_mask.png" in line


def test_missing_mask_folder(root):
    shutil.rmtree(root / "ground_truth/dent")
    (line,) = _problems(root)
    assert line.startswith(f"{root}/ground_truth/dent: no such folder")
    assert "3 images" in line


def test_extra_doubled_and_good_masks(root):
    _mask(root / "ground_truth/crack/009_mask.png")
    _mask(root / "ground_truth/crack/000.png")
    _mask(root / "ground_truth/good/000_mask.png")
    _mask(root / "ground_truth/scratch/000_mask.png")
    lines = _problems(root)
    assert len(lines) == 4
    text = "\n".join(lines)
    assert f"{root}/ground_truth/crack/009_mask.png: belongs to no image" in text
    assert f"{root}/ground_truth/crack/000_mask.png: a second mask" in text
    assert f"{root}/ground_truth/good: normal images have no masks" in text
    assert f"{root}/ground_truth/scratch: belongs to no folder" in text


def test_mask_of_another_defect_type(root):
    moved = root / "ground_truth/dent/002_mask.png"
    moved.rename(root / "ground_truth/crack/002_mask.png")
    missing, extra = _problems(root)
    assert extra.startswith(f"{root}/ground_truth/crack/002_mask.png: belongs to no image of")
    assert f"if it is the mask of {root}/test/dent/002.png, move it to" in extra
    assert missing.startswith(f"{root}/test/dent/002.png: has no mask")


def test_a_mask_without_an_image_is_never_sent_over_a_good_one(root):
    """The dents have their masks, or two; only a crack's is missing."""
    shutil.copytree(root / "ground_truth/dent", root / "ground_truth/hole")
    (root / "test/hole").mkdir()
    _mask(root / "ground_truth/dent/000.png")
    (root / "ground_truth/crack/001_mask.png").unlink()
    orphans = {line.split(":")[0]: line for line in _problems(root) if "belongs to no" in line}
    for number in (0, 2):
        line = orphans[f"{root}/ground_truth/hole/{number:03d}_mask.png"]
        assert line.endswith(f"no image of {root}/test/hole; add its image or remove the mask")
    line = orphans[f"{root}/ground_truth/hole/001_mask.png"]
    assert line.endswith(f"test/crack/001.png, move it to {root}/ground_truth/crack")


def test_what_lies_one_folder_too_high(root):
    _image(root / "train/000.png", 1)
    _mask(root / "ground_truth/000_mask.png")
    assert _problems(root) == [
        f"{root}/train/000.png: lies outside train/good; move it there",
        f"{root}/ground_truth/000_mask.png: lies outside ground_truth/<defect>; move it into its "
        "defect's folder",
    ]


@pytest.mark.parametrize("kind", ["file", "broken link"])
def test_ground_truth_that_is_no_folder(root, kind):
    shutil.rmtree(root / "ground_truth")
    if kind == "file":
        (root / "ground_truth").write_text("", encoding="utf-8")
    else:
        (root / "ground_truth").symlink_to("nowhere")
    (line,) = _problems(root)
    assert line.startswith(f"{root}/ground_truth: is no folder")


def test_mask_of_another_size(root):
    _mask(root / "ground_truth/dent/001_mask.png", sides=(20, 24))
    (line,) = _problems(root)
    assert line.startswith(f"{root}/ground_truth/dent/001_mask.png: 20 x 24 pixels, but ")
    assert "24 x 20" in line


def test_black_mask(root):
    _mask(root / "ground_truth/dent/001_mask.png", box=None)
    (line,) = _problems(root)
    assert line.startswith(f"{root}/ground_truth/dent/001_mask.png: all black")


def test_unreadable_images_and_masks(root):
    cut = root / "train/good/003.png"
    cut.write_bytes(cut.read_bytes()[:50])
    (root / "test/good/000.png").write_text("no image", encoding="utf-8")
    (root / "ground_truth/crack/000_mask.png").write_bytes(b"")
    lines = _problems(root)
    assert [line.split(":")[0] for line in lines] == [
        f"{root}/train/good/003.png",
        f"{root}/test/good/000.png",
        f"{root}/ground_truth/crack/000_mask.png",
    ]


def test_empty_folders(root):
    for path in (*root.glob("train/good/*"), *root.glob("ground_truth/crack/*")):
        path.unlink()
    (root / "test/hole").mkdir()
    (root / "ground_truth/hole").mkdir()
    remedies = dict(line.split(": empty; ") for line in _problems(root) if ": empty; " in line)
    assert {path.removeprefix(f"{root}/"): remedy for path, remedy in remedies.items()} == {
        "train/good": "put images into it",
        "test/hole": "put images into it or remove it",
        "ground_truth/crack": "put images into it",
        "ground_truth/hole": "put images into it or remove it",
    }


def test_misplaced_and_unknown_files(root):
    (root / "train/good/notes.txt").write_text("x", encoding="utf-8")
    (root / "train/good/more").mkdir()
    _image(root / "train/crack/000.png", 1)
    _image(root / "test/000.png", 1)
    _image(root / "test/dent/000.jpg", 1)
    lines = _problems(root)
    named = {line.split(":")[0].removeprefix(f"{root}/") for line in lines}
    assert named == {
        "train/good/notes.txt",
        "train/good/more",
        "train/crack",
        "test/000.png",
        "test/dent/000.png",
    }


def test_missing_training_images(root):
    shutil.rmtree(root / "train")
    assert f"{root}/train/good: no such folder" in _problems(root)


def test_a_file_where_the_test_folder_should_be(root):
    shutil.rmtree(root / "test")
    shutil.rmtree(root / "ground_truth")
    (root / "test").write_text("", encoding="utf-8")
    (line,) = _problems(root)
    assert line.startswith(f"{root}/test: is no folder")


def test_one_training_image_is_too_few(root):
    for path in sorted(root.glob("train/good/*"))[1:]:
        path.unlink()
    (line,) = _problems(root)
    assert "only training image" in line


def test_all_problems_at_once(root):
    (root / "ground_truth/dent/001_mask.png").unlink()
    _mask(root / "ground_truth/dent/002_mask.png", sides=(9, 9))
    (root / "train/good/003.png").write_text("no image", encoding="utf-8")
    assert len(_problems(root)) == 3


def test_missing_folder_and_impossible_settings(root, tmp_path):
    with pytest.raises(UserError, match=r"nowhere: no such folder; set data\.dir .*train/good"):
        folder.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"data\.channels is 2"):
        _load(root, channels=2)
    with pytest.raises(UserError, match=r"data\.validation_fraction is 1\.0"):
        _load(root, validation_fraction=1.0)
    with pytest.raises(UserError, match=r"data\.image_size is 0"):
        folder.load(root, image_size=0)


def test_cut_cache_entry_is_not_used(root):
    first = _load(root)
    (file,) = (root.parent / "cache").glob("*-images.npy")
    file.write_bytes(file.read_bytes()[:-100])
    np.testing.assert_array_equal(_load(root).train, first.train)
