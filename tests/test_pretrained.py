"""Converted ImageNet weights: parity with torchvision, mismatches, what is kept and downloaded."""

import hashlib
import importlib.util
import json
import pathlib

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from torch_writer import write

from vae_attn.errors import UserError
from vae_attn.models import pretrained, resnet18_tensors
from vae_attn.models.resnet import RESNET18_TRUNK
from vae_attn.models.tables import Layers

THIRD_PARTY = pathlib.Path(__file__).resolve().parents[1] / "third_party" / "resnet18"


@pytest.fixture(scope="module")
def reference():
    path = THIRD_PARTY / "make_reference.py"
    spec = importlib.util.spec_from_file_location("make_reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def manifest():
    return json.loads((THIRD_PARTY / "manifest.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def state(reference, manifest):
    """All of ResNet18, from a seed; what torchvision's file has beside the trunk too."""
    trunk = reference.seeded_state({k: tuple(v) for k, v in manifest["tensors"].items()})
    trunk["bn1.num_batches_tracked"] = np.array(7)
    trunk["fc.weight"] = np.ones((1000, 512), np.float32)
    trunk["fc.bias"] = np.zeros(1000, np.float32)
    return trunk


# Parity and conversion.


@pytest.mark.parametrize("size", [(64, 64), (97, 130), (224, 224)], ids=str)
def test_trunk_equals_torchvision(reference, state, size):
    stored = np.load(THIRD_PARTY / "reference.npz")
    trunk_state = {k: v for k, v in state.items() if not k.startswith("fc.") and v.ndim}
    assert reference.digest(trunk_state) == stored["state_sha256"], "NumPy's stream changed"
    variables = pretrained.convert_resnet18(state)
    trunk = Layers(RESNET18_TRUNK)
    x, after = jnp.asarray(reference.seeded_images(*size)), None
    for place in reference.PLACES:
        run = jax.jit(
            lambda x, after=after, until=place: trunk.apply(variables, x, after=after, until=until)
        )
        x, after = run(x), place
        key = f"{size[0]}x{size[1]}/{place}"
        found = reference.summary(np.asarray(x))
        np.testing.assert_array_equal(found["shape"], stored[f"{key}/shape"])
        for kind in ("means", "samples"):
            expected = stored[f"{key}/{kind}"]
            # Relative: 1e-5 of the largest activation, since they grow from layer to layer.
            np.testing.assert_allclose(
                found[kind], expected, rtol=0, atol=1e-5 * np.abs(expected).max()
            )


def test_converted_tree_is_the_trunk_own(state):
    trunk, images = Layers(RESNET18_TRUNK), jnp.zeros((1, 64, 64, 3))
    variables = jax.eval_shape(trunk.init, jax.random.key(0), images)
    expected = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), dict(variables))
    converted = jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), pretrained.convert_resnet18(state)
    )
    assert converted == expected
    # The design's count: ResNet18 without avgpool and fc.
    params = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in params) == 11_176_512


def test_conversion_puts_every_value_in_its_place(state):
    converted = pretrained.convert_resnet18(state)
    block = converted["params"]["layer2_0"]
    kernel = state["layer2.0.conv1.weight"]
    assert block["conv1"]["kernel"][2, 1, 5, 9] == kernel[9, 5, 2, 1]
    np.testing.assert_array_equal(
        block["downsample_bn"]["bias"], state["layer2.0.downsample.1.bias"]
    )
    stats = converted["batch_stats"]["layer4_1"]["bn2"]
    np.testing.assert_array_equal(stats["mean"], state["layer4.1.bn2.running_mean"])
    np.testing.assert_array_equal(stats["var"], state["layer4.1.bn2.running_var"])


def test_manifest_says_what_the_code_checks(manifest):
    wanted = {name: list(shape) for name, (shape, _) in resnet18_tensors.wanted_tensors().items()}
    assert manifest["tensors"] == wanted
    assert (manifest["file"], manifest["url"]) == (pretrained.FILE_NAME, pretrained.URL)
    assert manifest["sha256"] == pretrained.SHA256
    assert f"-{manifest['sha256'][:8]}.pth" in manifest["url"]


def test_every_mismatch_is_listed_at_once(state, tmp_path):
    broken = dict(state)
    del broken["layer1.0.conv1.weight"]
    broken["layer5.0.conv1.weight"] = np.ones(1, np.float32)
    broken["conv1.weight"] = np.ones((64, 3, 3, 3), np.float32)
    broken["bn1.bias"] = np.zeros(64, np.int64)
    broken["bn1.weight"] = np.full(64, np.nan, np.float32)
    broken["bn1.running_var"] = np.full(64, -1, np.float32)
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file(broken, path)
    with pytest.raises(UserError) as caught:
        pretrained.load_resnet18(path)
    message = str(caught.value)
    for part in (
        f"{path} is not torchvision's ResNet18 (7 mismatches)",
        "layer1.0.conv1.weight is missing",
        "layer5.0.conv1.weight is unexpected",
        "conv1.weight has the shape (64, 3, 3, 3), not (64, 3, 7, 7)",
        "bn1.bias has the type int64",
        "bn1.weight has values that are not finite",
        "bn1.running_var has negative variances",
        f"its sha256 is {hashlib.sha256(path.read_bytes()).hexdigest()}",
        pretrained.URL,
    ):
        assert part in message
    assert sorted(tmp_path.iterdir()) == [path]


# Loading, keeping the conversion, downloading.


def assert_same(variables, expected):
    found = flax.traverse_util.flatten_dict(variables, sep="/")
    expected = flax.traverse_util.flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.fixture
def official(tmp_path, state, monkeypatch):
    """A folder with a file that passes for the official one."""
    folder = tmp_path / "weights"
    folder.mkdir()
    path = folder / pretrained.FILE_NAME
    write(path, state, legacy=False)
    monkeypatch.setattr(pretrained, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_other_weights_load_where_they_are_asked_for(tmp_path, state, kind, caplog):
    path = tmp_path / "mine.bin"
    if kind == "safetensors":
        safetensors.numpy.save_file(state, path)
    else:
        write(path, state, legacy=kind == "legacy")
    with pytest.raises(UserError, match=r"\(1 mismatches\): its sha256 is"):
        pretrained.load_resnet18(path)
    loaded = pretrained.load_resnet18(path, official=False)
    assert_same(loaded, pretrained.convert_resnet18(state))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    pretrained.load_resnet18(path.with_name("mine.flax.safetensors"), official=False)
    told = [record.getMessage() for record in caplog.records]
    assert [message.split(" has the sha256 ")[0] for message in told] == [
        str(path),
        str(path.with_name("mine.flax.safetensors")),
    ]
    assert all(f" has the sha256 {digest}, not that of torchvision's" in line for line in told)
    # Now that its conversion lies beside it, it still does not pass for the official file.
    with pytest.raises(UserError, match=r"\(1 mismatches\): its sha256 is"):
        pretrained.load_resnet18(path)


def test_conversion_is_written_once_and_used(official, state, monkeypatch):
    expected = pretrained.convert_resnet18(state)
    assert_same(pretrained.load_resnet18(official), expected)
    converted = official.with_name("resnet18-f37072fd.flax.safetensors")
    assert sorted(official.parent.iterdir()) == sorted([official, converted])
    before = converted.stat().st_mtime_ns
    monkeypatch.setattr(pretrained, "read_torch_file", None)  # not read again
    assert_same(pretrained.load_resnet18(official.parent), expected)
    assert converted.stat().st_mtime_ns == before
    official.unlink()  # the conversion stands alone
    assert_same(pretrained.load_resnet18(official.parent), expected)
    assert_same(pretrained.load_resnet18(converted), expected)


def test_damaged_or_foreign_conversion_is_never_used(official, state, tmp_path):
    expected = pretrained.convert_resnet18(state)
    cache = tmp_path / "cache"
    pretrained.load_resnet18(official, cache_dir=cache)
    (converted,) = cache.iterdir()
    whole = converted.read_bytes()
    flipped = bytearray(whole)
    flipped[-1000] ^= 1
    for content in (flipped, whole[:5000], b"", whole):
        converted.write_bytes(content)
        assert_same(pretrained.load_resnet18(official, cache_dir=cache), expected)
        assert_same(pretrained.load_resnet18(converted), expected)  # written anew
    converted.write_bytes(flipped)
    with pytest.raises(UserError, match="is damaged"):
        pretrained.load_resnet18(converted)
    other = dict(state)
    other["bn1.bias"] = state["bn1.bias"] + 1
    write(official, other, legacy=False)  # same name, other content
    loaded = pretrained.load_resnet18(official, cache_dir=cache, official=False)
    np.testing.assert_array_equal(loaded["params"]["bn1"]["bias"], other["bn1.bias"])
    with pytest.raises(UserError, match="was made from a file with the sha256"):
        pretrained.load_resnet18(converted)


def test_official_weights_under_another_name_need_no_warning(official, caplog):
    renamed = official.rename(official.with_name("weights.pth"))
    pretrained.load_resnet18(renamed, official=False)
    pretrained.load_resnet18(renamed.with_name("weights.flax.safetensors"), official=False)
    assert not caplog.records


def test_every_mismatch_of_a_conversion_is_listed_at_once(state, tmp_path):
    variables = pretrained.convert_resnet18(state)
    variables["params"]["conv1"]["kernel"] = np.zeros((64, 3, 7, 7), np.float32)
    variables["batch_stats"]["bn1"]["var"] = np.full(64, -1, np.float32)
    variables["params"]["fc"] = {"bias": np.zeros(3, np.float32)}
    del variables["params"]["layer4_1"]["conv2"]
    path = tmp_path / "mine.flax.safetensors"
    pretrained._write_converted(variables, path, pretrained.SHA256)
    with pytest.raises(UserError, match=r"is not the trunk of ResNet18 \(4 mismatches\)") as caught:
        pretrained.load_resnet18(path)
    for part in (
        "params/layer4_1/conv2/kernel is missing",
        "params/conv1/kernel has the shape (64, 3, 7, 7), not (7, 7, 3, 64)",
        "batch_stats/bn1/var has negative variances",
        "params/fc/bias is unexpected",
    ):
        assert part in str(caught.value)


def test_unwritable_cache_does_not_stop_the_load(official, state, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    loaded = pretrained.load_resnet18(official, cache_dir=tmp_path / "file" / "folder")
    assert_same(loaded, pretrained.convert_resnet18(state))


def test_missing_weights_say_where_to_get_and_put_them(tmp_path):
    with pytest.raises(UserError) as caught:
        pretrained.load_resnet18(tmp_path)
    assert str(tmp_path / pretrained.FILE_NAME) in str(caught.value)
    assert pretrained.URL in str(caught.value)


def test_download_checks_and_leaves_no_half_file(official, tmp_path):
    folder = tmp_path / "new" / "folder"
    url, sha256 = official.as_uri(), pretrained.SHA256
    path = pretrained.download_resnet18(folder, url=url, sha256=sha256)
    assert path.read_bytes() == official.read_bytes()
    # There already: not fetched again.
    assert pretrained.download_resnet18(folder, url="file:///absent", sha256=sha256) == path
    path.write_bytes(b"half")
    with pytest.raises(UserError, match="remove it to download it"):
        pretrained.download_resnet18(folder, url=url, sha256=sha256)
    assert path.read_bytes() == b"half"
    path.unlink()
    with pytest.raises(UserError, match="came with the sha256"):
        pretrained.download_resnet18(folder, url=url, sha256="0" * 64)
    assert list(folder.iterdir()) == []


def test_download_without_connection_says_what_to_do_by_hand(tmp_path):
    # Port 9 of this very machine: nothing answers, and nothing leaves the machine.
    with pytest.raises(UserError, match=r"could not be downloaded .* put it at") as caught:
        pretrained.download_resnet18(tmp_path, url="http://127.0.0.1:9/resnet18.pth")
    assert str(tmp_path / pretrained.FILE_NAME) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
