"""Damaged and hostile safetensors files: one sentence for each."""

import json
import struct

import numpy as np
import safetensors.numpy
from fuzzing import answer, damaged, examples, memory_limit
from hypothesis import given
from hypothesis import strategies as st

from vae_attn.models import pretrained, resnet18_tensors

ARRAYS = {"conv1.weight": np.ones((2, 3, 4), np.float32), "bn1.running_var": np.ones(3)}


@given(data=st.data())
@examples(150)
def test_damaged_safetensors(tmp_path, data):
    path = tmp_path / "x.safetensors"
    whole = safetensors.numpy.save(ARRAYS, {"format": "pt"})
    path.write_bytes(data.draw(damaged(whole)))
    assert answer(lambda: pretrained.load_resnet18(path), path) is None


_NAMES = st.sampled_from(
    ["conv1.weight", "bn1.bias", "fc.weight", "a\nb", "\0", "é" * 300, "__metadata__"]
)
_TYPES = ["F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3", "I64", "U16", "BOOL", "C64", "F4", "X"]
_SIZES = st.one_of(st.integers(-2, 5), st.sampled_from([2**31, 2**63 - 1, 2**64, 10**30]))
_TENSOR = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(_TYPES),
        "shape": st.lists(_SIZES, max_size=4),
        "data_offsets": st.lists(_SIZES, min_size=2, max_size=2),
    }
)


@given(
    header=st.dictionaries(_NAMES, st.one_of(_TENSOR, st.none(), st.text(max_size=3)), max_size=5),
    length=st.sampled_from([None, None, None, 0, 2**32, 2**63, 2**64 - 1]),
)
@examples(250)
def test_any_header_of_safetensors(tmp_path, header, length):
    path = tmp_path / "x.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + bytes(64))
    with memory_limit(512):
        assert answer(lambda: pretrained.load_resnet18(path), path) is None


def test_a_tensor_too_many_is_refused(tmp_path):
    """Whatever its name is like."""
    tensors = {
        name: np.ones(shape, np.float32)
        for name, (shape, _) in resnet18_tensors.wanted_tensors().items()
    }
    path = tmp_path / "x.safetensors"
    for name in ("conv1.weight.x", "layer5.0.conv1.weight", "params/conv1/kernel"):
        safetensors.numpy.save_file(tensors | {name: np.ones(1, np.float32)}, path)
        assert answer(lambda: pretrained.load_resnet18(path), f"{name} is unexpected") is None


def test_a_float64_too_large_for_a_float32_is_not_finite(tmp_path):
    path = tmp_path / "x.safetensors"
    safetensors.numpy.save_file({"bn1.bias": np.full(64, 1e300)}, path)
    message = "bn1.bias has values that are not finite"
    assert answer(lambda: pretrained.load_resnet18(path), message) is None
