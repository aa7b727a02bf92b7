"""UCSD Ped1: the official layout, its labels and masks, and everything that can be wrong."""

import os
import pathlib
import re
import shutil
import tarfile

import numpy as np
import pytest
import synthetic
from PIL import Image

from vae_attn.data import frame_labels, ucsd_ped1, ucsd_ped1_decoding
from vae_attn.errors import UserError

SIZE = 40
MASK_CLIPS = (3, 4, 14, 18, 19, 21, 22, 23, 24, 32)  # of the real data set


@pytest.fixture(scope="module")
def drawn(tmp_path_factory) -> pathlib.Path:
    root = tmp_path_factory.mktemp("ped1") / "data"
    synthetic.write_ucsd_ped1(root)
    return root


@pytest.fixture
def root(drawn, tmp_path) -> pathlib.Path:
    """A twin of one's own to break: 3 training and 6 test clips of 12 frames, masks of 2 4 6."""
    shutil.copytree(drawn / "UCSDped1", tmp_path / "data/UCSDped1")
    return tmp_path / "data/UCSDped1"


def _load(root, **options):
    options.setdefault("cache_dir", root.parent / "cache")
    return ucsd_ped1.load(root, image_size=SIZE, **options)


def _problems(root) -> list[str]:
    with pytest.raises(UserError) as caught:
        _load(root)
    assert not list((root.parent / "cache").glob("*"))
    heading, *lines = str(caught.value).split("\n  ")
    assert heading.startswith(f"{root}: {len(lines)} problem")
    return lines


def _clip(name: str) -> int:
    return int(re.fullmatch(r"Test(\d{3})/\d{3}", name)[1])


def test_twin(root):
    data = _load(root)
    assert data.name == "UCSD Ped1"
    assert data.caveat.startswith("consecutive frames count as independent images")
    assert "(clips held out: 1)" in data.caveat
    assert data.train.shape == (36, SIZE, SIZE, 1)
    test = data.test
    assert test.images.shape == (60, SIZE, SIZE, 1)  # five of the six test clips
    assert test.class_names == ("normal", "anomalous")
    clips = [_clip(name) for name in test.names]
    assert sorted(set(clips)) != [1, 2, 3, 4, 5, 6]
    assert {2, 4, 6} < set(clips)  # clips with masks stay
    assert test.has_mask.tolist() == [clip in (2, 4, 6) for clip in clips]
    marked = test.masks.any(axis=(1, 2))
    assert (marked[test.has_mask] == test.labels[test.has_mask]).all()
    assert not marked[~test.has_mask].any()


def test_labels_frames_and_masks_belong_together(root):
    """Against the files themselves, one by one, resized by Pillow and by hand."""
    test = _load(root).test
    lines = (root / "Test/UCSDped1.m").read_text(encoding="utf-8").splitlines()[1:]
    rows = np.floor((np.arange(SIZE) + 0.5) * 158 / SIZE).astype(int)
    columns = np.floor((np.arange(SIZE) + 0.5) * 238 / SIZE).astype(int)
    for index, name in enumerate(test.names):
        clip, frame = name.split("/")
        ranges = re.findall(r"(\d+):(\d+)", lines[_clip(name) - 1])
        assert test.labels[index] == any(int(a) <= int(frame) <= int(b) for a, b in ranges)
        with Image.open(root / "Test" / f"{name}.tif") as picture:
            small = picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS)
        np.testing.assert_array_equal(test.images[index, ..., 0], small)
        if test.has_mask[index]:
            mask = np.asarray(Image.open(root / f"Test/{clip}_gt/{frame}.bmp")) > 0
            np.testing.assert_array_equal(test.masks[index], mask[np.ix_(rows, columns)])


@pytest.mark.parametrize("fraction", [0.2, 0.34, 0.5])
def test_validation_is_whole_clips_normal_frames(root, fraction):
    data = _load(root, validation_fraction=fraction)
    in_test = {_clip(name) for name in data.test.names}
    held_out = set(range(1, 7)) - in_test
    assert len(held_out) == round(6 * fraction)
    assert held_out <= {1, 3, 5}  # without masks first
    assert len(data.test) == 12 * len(in_test)
    lines = (root / "Test/UCSDped1.m").read_text(encoding="utf-8").splitlines()[1:]
    normal = []
    for clip in sorted(held_out):
        ranges = re.findall(r"(\d+):(\d+)", lines[clip - 1])
        for number in range(1, 13):
            if not any(int(a) <= number <= int(b) for a, b in ranges):
                path = root / f"Test/Test{clip:03d}/{number:03d}.tif"
                with Image.open(path) as picture:
                    normal.append(
                        np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS))
                    )
    np.testing.assert_array_equal(data.validation[..., 0], np.stack(normal))


def test_clips_with_masks_are_held_out_only_when_the_others_run_out(root):
    data = _load(root, validation_fraction=0.67)
    held_out = set(range(1, 7)) - {_clip(name) for name in data.test.names}
    assert len(held_out) == 4
    assert {1, 3, 5} < held_out


def test_draw_follows_the_seed(root):
    def first(seed):
        return _load(root, seed=seed).test.names

    assert first(3) == first(3)
    assert len({first(seed) for seed in range(8)}) > 1


def test_clips_without_normal_frames_are_not_held_out(root):
    path = root / "Test/UCSDped1.m"
    lines = path.read_text(encoding="utf-8").splitlines()
    for clip in (1, 3):
        lines[clip] = "TestVideoFile{end+1}.gt_frame = [1:12];"
    path.write_text("\n".join(lines), encoding="utf-8")
    for seed in range(4):
        assert 5 not in {_clip(name) for name in _load(root, seed=seed).test.names}


def test_second_load_decodes_nothing(root, monkeypatch):
    first = _load(root)
    monkeypatch.setattr(ucsd_ped1, "decode_clips", lambda *_: pytest.fail("decoded again"))
    second = _load(root)
    np.testing.assert_array_equal(first.test.masks, second.test.masks)
    assert isinstance(second.train, np.memmap)


def test_parent_folder_and_left_over_files(root):
    for place in (".", "Train", "Test", "Train/Train001", "Test/Test002", "Test/Test002_gt"):
        for name in (".DS_Store", "._001.tif", "._001.bmp"):
            (root / place / name).write_bytes(b"\0")
    (root / "Test/UCSDped1.m~").write_text("older", encoding="utf-8")
    assert len(_load(root.parent, cache_dir=root.parent / "cache").test) == 60


def test_without_any_masks(root):
    for clip in (2, 4, 6):
        shutil.rmtree(root / f"Test/Test{clip:03d}_gt")
    test = _load(root).test
    assert test.masks is None
    assert not test.has_mask.any()


def test_missing_folder(tmp_path):
    with pytest.raises(UserError, match=r"nowhere: holds no UCSD Ped1; .*svcl\.ucsd\.edu.*\.m"):
        ucsd_ped1.load(tmp_path / "nowhere")


def test_mask_count_and_gap(root):
    (root / "Test/Test002_gt/012.bmp").unlink()
    (line,) = _problems(root)
    assert line.startswith(f"{root}/Test/Test002_gt: 11 masks for the 12 frames of Test002")


def test_a_gap_in_the_masks_contradicts_no_label(root):
    """Masks that are shifted against their frames would disagree with the labels."""
    masks = root / "Test/Test002_gt"
    (masks / "005.bmp").rename(masks / "013.bmp")
    (line,) = _problems(root)
    assert line.startswith(f"{masks}/005.bmp: missing")
    (masks / "013.bmp").unlink()
    gap, count = _problems(root)
    assert gap == line
    assert count.startswith(f"{masks}: 11 masks for the 12 frames")


def test_two_masks_more_than_frames(root):
    for number in (13, 14):
        shutil.copy(root / "Test/Test002_gt/012.bmp", root / f"Test/Test002_gt/{number:03d}.bmp")
    (line,) = _problems(root)
    assert line.startswith(f"{root}/Test/Test002_gt: 14 masks for the 12 frames")


def test_frames_of_another_size(root):
    """In clips without masks as with them, and of the first frame too."""
    odd = [root / f"{clip}.tif" for clip in ("Train/Train001/001", "Test/Test001/007")]
    odd.append(root / "Test/Test002/005.tif")
    for path in odd:
        Image.new("L", (238, 150)).save(path)
    assert _problems(root) == [
        f"{path}: 238 x 150 pixels, but the frames of {path.parent.name} have 238 x 158; restore it"
        for path in odd
    ]


def _lose(path, how):
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:1000] if how == "cut" else b"")


@pytest.mark.parametrize("how", ["missing", "cut", "empty"])
def test_a_lost_frame_costs_that_frame_alone(root, caplog, how):
    """In training clips, in clips with masks and in those without, in the middle and at ends."""
    whole = _load(root)
    scored = [clip for clip in (1, 3, 5) if f"Test{clip:03d}/001" in whole.test.names]
    lost = ["Train/Train001/005", f"Test/Test{scored[0]:03d}/001", "Test/Test002/012"]
    for name in lost:
        _lose(root / f"{name}.tif", how)
    assert not caplog.messages
    for _ in range(2):  # the second time from the cache
        caplog.clear()
        data = _load(root)
        (message,) = caplog.messages
        assert message == (
            f"{root}: these frames cannot be read or are missing, and are left out: "
            + ", ".join(lost)
        )
        np.testing.assert_array_equal(data.train, np.delete(whole.train, 4, axis=0))
        kept = np.array([f"Test/{name}" not in lost for name in whole.test.names])
        expected = whole.test.take(kept)
        assert len(data.test) == len(whole.test) - 2
        assert data.test.names == expected.names
        for name in ("images", "labels", "masks", "has_mask"):
            np.testing.assert_array_equal(getattr(data.test, name), getattr(expected, name))
        index = data.test.names.index("Test002/011")
        np.testing.assert_array_equal(
            data.test.full_mask(index), whole.test.full_mask(whole.test.names.index("Test002/011"))
        )
        assert "Frames that cannot be read are not scored (2)." in data.scores_note
        np.testing.assert_array_equal(data.validation, whole.validation)


def test_a_lost_last_frame_that_the_labels_name(root):
    """Nothing but the labels says that it was there."""
    path = root / "Test/UCSDped1.m"
    lines = path.read_text(encoding="utf-8").splitlines()
    lines[3] = "TestVideoFile{end+1}.gt_frame = [3:12];"
    path.write_text("\n".join(lines), encoding="utf-8")
    whole = _load(root)
    (root / "Test/Test003/012.tif").unlink()
    data = _load(root)
    assert len(data.test) + len(data.validation) >= len(whole.test) + len(whole.validation) - 1
    assert "Test003/012" not in data.test.names
    lines[3] = "TestVideoFile{end+1}.gt_frame = [3:14];"
    path.write_text("\n".join(lines), encoding="utf-8")
    (line,) = _problems_beside_a_cache(root)
    assert "goes beyond the clip's 11 frames" in line


def _problems_beside_a_cache(root):
    with pytest.raises(UserError) as caught:
        _load(root)
    return str(caught.value).split("\n  ")[1:]


@pytest.mark.parametrize("how", ["missing", "cut"])
@pytest.mark.parametrize(("number", "stand_in"), [("005", "004"), ("001", "002")])
def test_known_damage_is_healed_by_the_frame_beside_it(
    root, caplog, monkeypatch, how, number, stand_in
):
    monkeypatch.setattr(ucsd_ped1_decoding, "KNOWN_DAMAGE", {("Test004", number)})
    whole = _load(root, cache_dir=root.parent / "whole")
    _lose(root / f"Test/Test004/{number}.tif", how)
    for _ in range(2):
        caplog.clear()
        test = _load(root).test
        (message,) = caplog.messages
        assert message.startswith(f"{root}: these frames are damaged in the published archive")
        assert message.endswith(f": Test/Test004/{number}")
        assert test.names == whole.test.names
        np.testing.assert_array_equal(test.labels, whole.test.labels)
        np.testing.assert_array_equal(
            test.images[test.names.index(f"Test004/{number}")],
            whole.test.images[whole.test.names.index(f"Test004/{stand_in}")],
        )


def test_the_published_damage_is_known():
    """Frame 142 of test clip 17, in the archive itself."""
    assert {("Test017", "142")} == ucsd_ped1_decoding.KNOWN_DAMAGE


def test_more_lost_frames_than_one_in_twenty_are_refused(root):
    for number in (5, 6):
        (root / f"Train/Train001/{number:03d}.tif").unlink()
        (root / f"Test/Test001/{number:03d}.tif").write_bytes(b"")
    missing, *unreadable = _problems(root)
    assert missing == (
        f"{root}/Train/Train001: 2 of 12 frames are missing, 005.tif the first of them; "
        "restore them"
    )
    assert [line.split(":")[0].removeprefix(f"{root}/") for line in unreadable] == [
        "Test/Test001/005.tif",
        "Test/Test001/006.tif",
    ]


def test_a_huge_number_of_a_frame(root):
    (root / "Train/Train001/012.tif").rename(root / "Train/Train001/999999999.tif")
    (line,) = _problems(root)
    assert "999999987 of 999999999 frames are missing, 012.tif the first" in line


def test_frames_whose_names_are_no_numbers(root):
    names = ["5.tif", "000.tif", "0012.tif", "012.TIF", "٠٠٣.tif"]
    for name in names:
        shutil.copy(root / "Train/Train001/012.tif", root / "Train/Train001" / name)
    named = {line.split(":")[0].rpartition("/")[2] for line in _problems(root)}
    assert named == {*names} - {"012.TIF"} | {"012.tif"}


def test_mask_size_and_label_contradiction(root):
    Image.new("L", (158, 238)).save(root / "Test/Test002_gt/001.bmp")
    Image.new("L", (238, 158)).save(root / "Test/Test004_gt/005.bmp")
    size, contradiction = _problems(root)
    assert size.startswith(f"{root}/Test/Test002_gt/001.bmp: 158 x 238 pixels, but ")
    assert contradiction.startswith(f"{root}/Test/Test004_gt: masks and UCSDped1.m disagree")
    assert "005" in contradiction


def test_unreadable_masks(root):
    (root / "Test/Test006_gt/001.bmp").write_text("no image", encoding="utf-8")
    (line,) = _problems(root)
    assert line.startswith(f"{root}/Test/Test006_gt/001.bmp: ")


def test_empty_unknown_and_missing_clips(root):
    shutil.rmtree(root / "Train/Train002")
    (root / "Train/Train004").mkdir()
    (root / "Test/Test009_gt").mkdir()
    (root / "Test/Test001/notes.txt").write_text("x", encoding="utf-8")
    named = [line.split(":")[0].removeprefix(f"{root}/") for line in _problems(root)]
    assert named == [
        "Train/Train002",
        "Train/Train004",
        "Test/Test009_gt",
        "Test/Test001/notes.txt",
    ]


def test_problems_of_all_kinds_at_once(root):
    (root / "Test/UCSDped1.m").unlink()
    (root / "Test/Test002_gt/012.bmp").unlink()
    for number in (3, 4):
        (root / f"Train/Train002/{number:03d}.tif").write_bytes(b"")
    assert len(_problems(root)) == 4


@pytest.mark.parametrize("clips", [-1, 1])
def test_labels_of_fewer_or_more_clips(root, clips):
    path = root / "Test/UCSDped1.m"
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(lines[:clips] if clips < 0 else lines + lines[-1:]), encoding="utf-8")
    (line,) = _problems(root)
    assert line.startswith(f"{path}: lists {6 + clips} test clips, but there are 6")


def _labels(tmp_path, text, counts):
    path = tmp_path / "UCSDped1.m"
    path.write_text(text, encoding="utf-8")
    labels, problems = frame_labels.read_frame_labels(path, counts)
    if problems:
        raise UserError("\n".join(problems))
    return tuple(labels)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-be"])
def test_labels_after_a_byte_order_mark(root, encoding):
    expected = _load(root).test.labels
    path = root / "Test/UCSDped1.m"
    mark = "\ufeff" if encoding.endswith("be") else ""
    path.write_text(mark + path.read_text(encoding="utf-8"), encoding=encoding)
    np.testing.assert_array_equal(_load(root).test.labels, expected)


def test_masks_at_the_size_of_the_frames(root):
    test = _load(root).test
    index = test.names.index("Test004/006")
    mask = np.asarray(Image.open(root / "Test/Test004_gt/006.bmp")) > 0
    np.testing.assert_array_equal(test.full_mask(index), mask)
    assert mask.shape == (158, 238)
    with pytest.raises(ValueError, match=r"Test00\d/001 has no mask"):
        test.full_mask(int(np.flatnonzero(~test.has_mask)[0]))


def test_label_syntax(tmp_path):
    text = (
        "% anomalous frames\r\nTestVideoFile = {};\r\n\r\n"
        "TestVideoFile{end+1}.gt_frame = [2:3, 5:5];  % two ranges\r\n"
        "TestVideoFile{end + 1}.gt_frame=[1 : 2 4];\n"
        "TestVideoFile{end+1}.gt_frame = [];\n"
    )
    found = _labels(tmp_path, text, [6, 4, 3])
    assert [np.flatnonzero(label).tolist() for label in found] == [[1, 2, 4], [0, 1, 3], []]
    assert [len(label) for label in found] == [6, 4, 3]


@pytest.mark.parametrize(
    ("ranges", "reason"),
    [
        ("1:7", "goes beyond the clip's 6 frames"),
        ("0:3", "count up from 1"),
        ("4:2", "count up from 1"),
        ("a:b", "is no range"),
        ("1:2:6", "is no range"),
        ("-1:3", "is no range"),
    ],
)
def test_bad_ranges_name_the_line(tmp_path, ranges, reason):
    text = f"TestVideoFile = {{}};\nTestVideoFile{{end+1}}.gt_frame = [{ranges}];\n"
    with pytest.raises(UserError, match=rf"UCSDped1\.m, line 2: .*{reason}"):
        _labels(tmp_path, text, [6])


def test_nothing_in_the_label_file_is_executed(tmp_path):
    victim = tmp_path / "victim"
    text = f"TestVideoFile{{end+1}}.gt_frame = [__import__('os').mkdir('{victim}')];\n!touch x\n"
    with pytest.raises(UserError) as caught:
        _labels(tmp_path, text, [6])
    assert len(str(caught.value).splitlines()) == 2
    assert "line 1" in str(caught.value)
    assert "line 2" in str(caught.value)
    assert not victim.exists()


def _with_drawn_frames(root: pathlib.Path, archive: pathlib.Path) -> None:
    """The real masks and labels, with frames whose grey level tells their clip."""
    (root / "Test").mkdir(parents=True)
    with tarfile.open(archive) as tar:
        tar.extractall(root / "Test", filter="data")
    for split, clips in (("Train", 2), ("Test", 36)):
        for clip in range(1, clips + 1):
            folder = root / split / f"{split}{clip:03d}"
            folder.mkdir(parents=True)
            frame = Image.new("L", (238, 158), 5 * clip)
            frame.save(folder / "001.tif", compression="tiff_lzw")
            for number in range(2, 201):
                os.link(folder / "001.tif", folder / f"{number:03d}.tif")


@pytest.mark.slow
def test_real_masks_and_labels(shared_data, tmp_path):
    root = tmp_path / "UCSDped1"
    _with_drawn_frames(root, shared_data / "ucsd_ped1_masks.tar.xz")
    labels, _ = frame_labels.read_frame_labels(root / "Test/UCSDped1.m", [200] * 36)
    assert sum(int(label.sum()) for label in labels) == 4045
    data = ucsd_ped1.load(tmp_path, cache_dir=tmp_path / "cache")
    assert data.name == "UCSD Ped1"
    test = data.test
    assert test.images.shape == (29 * 200, 100, 100, 1)  # 7 of the 36 clips validate
    assert test.has_mask.sum() == 2000
    clips = np.array([_clip(name) for name in test.names])
    assert set(clips[test.has_mask]) == set(MASK_CLIPS)
    assert (test.images[:, 50, 50, 0] == 5 * clips).all()
    marked = test.masks.any(axis=(1, 2))
    assert (marked[test.has_mask] == test.labels[test.has_mask]).all()
    held_out = sorted(set(range(1, 37)) - set(clips.tolist()))
    normal = [200 - int(labels[clip - 1].sum()) for clip in held_out]
    levels, counts = np.unique(data.validation[:, 0, 0, 0], return_counts=True)
    assert dict(zip(levels // 5, counts, strict=True)) == {
        clip: count for clip, count in zip(held_out, normal, strict=True) if count
    }


@pytest.mark.slow
def test_real_frames(shared_data, tmp_path, caplog):
    """Eleven official test clips; training clips of the normal frames of others."""
    with tarfile.open(shared_data / "ucsd_ped1_part.tar.xz") as tar:
        tar.extractall(tmp_path, filter="data")
    root = tmp_path / "ucsd_ped1" / "UCSDped1"
    (root / "Train/Train004/050.tif").write_bytes(b"damaged")
    (root / "Test/Test003/100.tif").unlink()
    data = ucsd_ped1.load(root, cache_dir=tmp_path / "cache")
    (message,) = caplog.messages
    assert message.endswith("left out: Train/Train004/050, Test/Test003/100")
    assert data.train.shape[0] == len(list(root.glob("Train/*/*.tif"))) - 1
    clips = {_clip(name) for name in data.test.names}
    assert len(clips) == 9
    assert set(range(1, 8)) < clips  # those with masks
    assert "Test003/099" in data.test.names
    assert "Test003/100" not in data.test.names
    marked = data.test.masks.any(axis=(1, 2))
    has = data.test.has_mask
    np.testing.assert_array_equal(marked[has], data.test.labels[has] > 0)
    assert data.test.full_mask(5).any() == marked[5]
