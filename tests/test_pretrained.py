"""ImageNet weights: parity with torchvision, mismatches, loading and downloading."""

import functools
import hashlib
import http.server
import importlib.util
import json
import pathlib
import runpy
import sys
import threading

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from vae_attn.errors import UserError
from vae_attn.models import pretrained, resnet18_tensors
from vae_attn.models.resnet import resnet18_trunk
from vae_attn.models.tables import stack

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
    trunk = stack(*resnet18_trunk())
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
    trunk, images = stack(*resnet18_trunk()), jnp.zeros((1, 64, 64, 3))
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
    assert f"/{manifest['revision']}/" in manifest["url"]


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
        f"{path} is not torchvision's ResNet18 (6 mismatches)",
        "layer1.0.conv1.weight is missing",
        "layer5.0.conv1.weight is unexpected",
        "conv1.weight has the shape (64, 3, 3, 3), not (64, 3, 7, 7)",
        "bn1.bias has the type int64",
        "bn1.weight has values that are not finite",
        "bn1.running_var has negative variances",
        pretrained.URL,
    ):
        assert part in message
    assert sorted(tmp_path.iterdir()) == [path]


# Loading and downloading.


def assert_same(variables, expected):
    found = flax.traverse_util.flatten_dict(variables, sep="/")
    expected = flax.traverse_util.flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.fixture
def official(tmp_path, state, monkeypatch):
    """A file that passes for the public one, in a folder of its own."""
    path = tmp_path / "weights" / pretrained.FILE_NAME
    path.parent.mkdir()
    safetensors.numpy.save_file(state, path)
    monkeypatch.setattr(pretrained, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return path


def test_the_public_weights_load_from_their_file_or_its_folder(official, state, caplog):
    expected = pretrained.convert_resnet18(state)
    for path in (official, str(official.parent)):
        assert_same(pretrained.load_resnet18(path), expected)
    moved = official.rename(official.with_name("model.safetensors"))  # its name at its source
    for path in (moved, moved.parent):
        assert_same(pretrained.load_resnet18(path), expected)
    assert not caplog.records


def test_other_weights_load_with_a_warning(tmp_path, state, caplog):
    path = tmp_path / "mine.safetensors"
    other = state | {"bn1.bias": state["bn1.bias"] + 1}
    safetensors.numpy.save_file(other, path)
    loaded = pretrained.load_resnet18(path)
    np.testing.assert_array_equal(loaded["params"]["bn1"]["bias"], other["bn1.bias"])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (record,) = caplog.records
    message = f"{path} has the sha256 {digest}, not that of the public ImageNet weights"
    assert record.getMessage().startswith(message)


def test_a_damaged_public_file_is_refused(official):
    content = bytearray(official.read_bytes())
    content[-1000] ^= 1
    official.write_bytes(content)
    with pytest.raises(UserError, match=f"{official} is damaged or another file: its sha256 is"):
        pretrained.load_resnet18(official.parent)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_a_file_of_torch_names_the_script_that_converts_it(tmp_path, suffix):
    path = tmp_path / f"resnet18{suffix}"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(UserError) as caught:
        pretrained.load_resnet18(path)
    command = f"`python third_party/resnet18/convert.py {path} {tmp_path}/resnet18.safetensors`"
    assert command in str(caught.value)
    assert (THIRD_PARTY / "convert.py").is_file()


def test_the_script_converts_what_torch_saved(tmp_path, state, monkeypatch):
    torch = pytest.importorskip("torch")
    path, target = tmp_path / "resnet18.pth", tmp_path / "resnet18.safetensors"
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path)
    monkeypatch.setattr(sys, "argv", ["convert.py", str(path), str(target)])
    runpy.run_path(str(THIRD_PARTY / "convert.py"), run_name="__main__")
    assert_same(pretrained.load_resnet18(target), pretrained.convert_resnet18(state))


def test_missing_weights_say_where_to_get_and_put_them(tmp_path):
    with pytest.raises(UserError) as caught:
        pretrained.load_resnet18(tmp_path)
    assert str(tmp_path / pretrained.FILE_NAME) in str(caught.value)
    assert pretrained.URL in str(caught.value)


@pytest.fixture
def server(tmp_path):
    """Address of a server on this very machine, and the folder that it serves."""
    folder = tmp_path / "served"
    folder.mkdir()
    handler = functools.partial(QuietHandler, directory=folder)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}", folder
        serving.shutdown()
        thread.join()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_download_checks_and_leaves_no_half_file(server, tmp_path):
    address, served = server
    (served / "weights").write_bytes(b"tensors")
    sha256 = hashlib.sha256(b"tensors").hexdigest()
    url, folder = f"{address}/weights", tmp_path / "new" / "folder"
    with pytest.raises(UserError, match=r"could not be downloaded .* put it at"):
        pretrained.download_resnet18(folder, url=url, sha256="0" * 64)
    assert list(folder.iterdir()) == []
    path = pretrained.download_resnet18(folder, url=url, sha256=sha256)
    assert path == folder / pretrained.FILE_NAME
    assert path.read_bytes() == b"tensors"
    (served / "weights").unlink()  # there already: not fetched again
    assert pretrained.download_resnet18(folder, url=url, sha256=sha256) == path
    path.write_bytes(b"half")
    with pytest.raises(UserError, match=r"could not be downloaded \(404"):
        pretrained.download_resnet18(folder, url=url, sha256=sha256)
    (served / "weights").write_bytes(b"tensors")
    pretrained.download_resnet18(folder, url=url, sha256=sha256)
    assert path.read_bytes() == b"tensors"
    assert list(folder.iterdir()) == [path]


def test_download_without_connection_says_what_to_do_by_hand(tmp_path):
    # Port 9 of this very machine: nothing answers, and nothing leaves the machine.
    with pytest.raises(UserError, match=r"could not be downloaded .* put it at") as caught:
        pretrained.download_resnet18(tmp_path, url="http://127.0.0.1:9/resnet18.safetensors")
    assert str(tmp_path / pretrained.FILE_NAME) in str(caught.value)
    assert list(tmp_path.iterdir()) == []
