"""ImageNet weights for the ResNet18 trunk: torchvision's tensors, checked and turned into Flax's.

`third_party/resnet18/` says where the weights come from and under which terms.
"""

import hashlib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.traverse_util
import numpy as np
import safetensors
from absl import logging

from vae_attn.errors import UserError, shown
from vae_attn.models.resnet18_tensors import mismatches, wanted_tensors

# torchvision's ResNet18_Weights.IMAGENET1K_V1, as timm publishes them.
FILE_NAME = "resnet18.tv_in1k.safetensors"
URL = (
    "https://huggingface.co/timm/resnet18.tv_in1k/resolve/"
    "bbd144b3e5565108aad885f145491d11bc6ce807/model.safetensors"
)
SHA256 = "694f673df6520a3158624e8a89af086f59923ee4cd7436fe5bc3bc71d295ad81"

# What the weights were trained on: images in [0, 1], less this mean, over this deviation (RGB).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_NAMES = (FILE_NAME, "model.safetensors")  # in a folder: ours, and the one it has at its source
_MOST = 250  # of mismatches in a message: each of the trunk's tensors may be missing and renamed

Variables = dict[str, dict[str, Any]]


def load_resnet18(path: str | os.PathLike[str]) -> Variables:
    """Loads the trunk's weights.

    Args:
      path: a safetensors file with torchvision's names, or a folder with one of `_NAMES`. A file
        of the name `FILE_NAME` must be the public one; any other may be a ResNet18 of one's own,
        which a warning reports.

    Returns:
      `params` and `batch_stats` of the trunk (see `convert_resnet18`).

    Raises:
      UserError: no such file, an unreadable one, or one that does not match; the message lists
        every mismatch.
    """
    source = _locate(pathlib.Path(path))
    state = _read(source)
    digest = _sha256(source)
    if digest != SHA256 and source.name == FILE_NAME:
        raise UserError(
            f"{source} is damaged or another file: its sha256 is {digest}, and that of {URL} is "
            f"{SHA256}; get the file again, or rename it if it is a ResNet18 of your own."
        )
    variables = convert_resnet18(state, source=str(source))
    if digest != SHA256:
        logging.warning(
            "%s has the sha256 %s, not that of the public ImageNet weights (%s): it is taken for a "
            "ResNet18 of your own",
            source,
            digest,
            SHA256,
        )
    return variables


def convert_resnet18(
    state: Mapping[str, np.ndarray], *, source: str = "the state dict"
) -> Variables:
    """Turns torchvision's ResNet18 into variables of the Flax trunk.

    Kernels go from (out, in, height, width) to (height, width, in, out); `layer1.0.downsample.0`
    becomes `layer1_0`/`downsample_conv`, `.1` its `downsample_bn`. The classifier (`fc.*`) and
    the counters `num_batches_tracked`, which a momentum of 0.1 does not use, are dropped.

    Args:
      state: the state dict.
      source: its name in error messages.

    Returns:
      `{"params": ..., "batch_stats": ...}`, nested dicts of float32.

    Raises:
      UserError: listing everything that is missing, unexpected, of another shape or type, or not
        finite.
    """
    wanted = wanted_tensors()
    state = {name: value for name, value in state.items() if not _is_dropped(name)}
    found = list(mismatches(state, {name: shape for name, (shape, _) in wanted.items()}))
    if found:
        raise UserError(
            f"{source} is not torchvision's ResNet18 ({len(found)} mismatches): "
            f"{_listed(found)}. Get {URL}"
        )
    flat = {}
    for name, (_, path) in wanted.items():
        value = np.asarray(state[name], np.float32)
        flat[path] = np.ascontiguousarray(value.transpose(2, 3, 1, 0) if value.ndim == 4 else value)
    return flax.traverse_util.unflatten_dict(flat)


def download_resnet18(
    folder: str | os.PathLike[str], *, url: str = URL, sha256: str = SHA256
) -> pathlib.Path:
    """Downloads the public weights, unless they are already there.

    Args:
      folder: where the file goes, under `FILE_NAME`; created where needed.
      url: where it comes from.
      sha256: the digest that it must have.

    Returns:
      The file's path.

    Raises:
      UserError: no connection, another digest, or a folder that cannot be written. What was
        there stays as it was, and nothing half-written is left.
    """
    import pooch  # with requests, which every start would wait for

    target = pathlib.Path(folder) / FILE_NAME
    pooch.get_logger().setLevel("WARNING")
    if not target.is_file():
        logging.info("downloading %s to %s", url, target)
    try:
        pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=FILE_NAME, path=target.parent)
    except (OSError, ValueError) as error:  # those of requests are OSErrors; another digest is not
        problem = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{url} could not be downloaded ({shown(problem)}); get it on a machine that can, and "
            f"put it at {target}."
        ) from error
    return target


def _is_dropped(name: str) -> bool:
    return name.startswith("fc.") or name.endswith(".num_batches_tracked")


def _listed(mismatches: list[str]) -> str:
    """All of them, unless they come from a file that has nothing to do with a ResNet18."""
    more = [f"and {len(mismatches) - _MOST} more"] if len(mismatches) > _MOST else []
    return "; ".join(mismatches[:_MOST] + more)


def _locate(path: pathlib.Path) -> pathlib.Path:
    """The weights' file, from it or from its folder."""
    if path.is_file():
        return path
    found = next((path / name for name in _NAMES if (path / name).is_file()), None)
    if found is None:
        where = path / FILE_NAME if path.is_dir() else path
        raise UserError(
            f"no ResNet18 weights at {where}; download {URL} and put it there, or set "
            "model.pretrained=download."
        )
    return found


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if path.suffix in (".pth", ".pt", ".bin"):
        raise UserError(
            f"{path} is a file of torch.save, which may run code when it is read: convert it by "
            f"`python third_party/resnet18/convert.py {path} {path.with_suffix('.safetensors')}` "
            "(it needs torch), and give the result."
        )
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except Exception as error:  # of a type that numpy lacks, or a text that is none, others come
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} is no readable safetensors file ({shown(reason)}); get the file again."
        ) from error
