"""ImageNet weights for the ResNet18 trunk: torchvision's file, checked and converted to Flax.

`third_party/resnet18/` tells where the weights come from and under which terms.
"""

import hashlib
import http.client
import os
import pathlib
import tempfile
import urllib.request
from collections.abc import Mapping

import flax.traverse_util
import numpy as np
import safetensors
import safetensors.numpy
from absl import logging

from vae_attn.errors import UserError, shown
from vae_attn.models.resnet18_tensors import mismatches, wanted_tensors
from vae_attn.models.torch_files import read_torch_file

FILE_NAME = "resnet18-f37072fd.pth"  # torchvision's ResNet18_Weights.IMAGENET1K_V1
URL = f"https://download.pytorch.org/models/{FILE_NAME}"
SHA256 = "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec"

# What the weights were trained on: images in [0, 1], less this mean, over this deviation (RGB).
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_FORMAT = "vae_attn resnet18 1"
_MOST = 250  # of mismatches in a message: each of the trunk's tensors may be missing and renamed
_SUFFIX = ".flax.safetensors"

Variables = dict[str, dict]


def load_resnet18(
    path: str | os.PathLike[str],
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    official: bool = True,
) -> Variables:
    """Loads the trunk's weights, and keeps them converted for the next time.

    Args:
      path: torchvision's state dict as `.pth` (zip or legacy) or safetensors, a file that an
        earlier call converted, or a folder that holds `FILE_NAME` or its conversion.
      cache_dir: where the converted file goes; beside the source by default.
      official: whether the file must be torchvision's own, told by its sha256. False accepts
        any weights with the right names and shapes, and warns where they are others.

    Returns:
      `params` and `batch_stats` of the trunk (see `convert_resnet18`).

    Raises:
      UserError: no such file, a corrupt or refused one, or one that does not match; the message
        lists every mismatch.
    """
    source = _locate(pathlib.Path(path))
    if source.name.endswith(_SUFFIX):
        return _read_converted(source, SHA256 if official else None)
    digest = _sha256(source)
    if not official:
        _warn_of_other_weights(source, digest)
    folder = pathlib.Path(cache_dir) if cache_dir is not None else source.parent
    converted = folder / (source.name.split(".")[0] + _SUFFIX)
    if converted.is_file() and (digest == SHA256 or not official):
        try:
            return _read_converted(converted, digest)
        except UserError as error:
            logging.warning("%s; it is converted again from %s", error, source)
    state = _read_state(source)
    variables = convert_resnet18(
        state, source=str(source), sha256=digest, expected_sha256=SHA256 if official else None
    )
    try:
        _write_converted(variables, converted, digest)
    except OSError as error:  # the weights are here, so a read-only folder is no reason to stop
        logging.warning("%s could not be written: %s", converted, error)
    return variables


def convert_resnet18(
    state: Mapping[str, np.ndarray],
    *,
    source: str = "the state dict",
    sha256: str | None = None,
    expected_sha256: str | None = None,
) -> Variables:
    """Turns torchvision's ResNet18 into variables of the Flax trunk.

    Kernels go from (out, in, height, width) to (height, width, in, out); `layer1.0.downsample.0`
    becomes `layer1_0`/`downsample_conv`, `.1` its `downsample_bn`. The classifier (`fc.*`) and
    the counters `num_batches_tracked`, which a momentum of 0.1 does not use, are dropped.

    Args:
      state: the state dict.
      source: its name in error messages.
      sha256: the file's digest.
      expected_sha256: the digest it must have, None for any.

    Returns:
      `{"params": ..., "batch_stats": ...}`, nested dicts of float32.

    Raises:
      UserError: listing at once all that is missing, unexpected, of another shape or type, not
        finite, or has another sha256.
    """
    wanted = wanted_tensors()
    state = {name: value for name, value in state.items() if not _is_dropped(name)}
    found = list(mismatches(state, {name: shape for name, (shape, _) in wanted.items()}))
    if expected_sha256 is not None and sha256 != expected_sha256:
        found.append(f"its sha256 is {sha256}, and the official file's is {expected_sha256}")
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


def _is_dropped(name: str) -> bool:
    return name.startswith("fc.") or name.endswith(".num_batches_tracked")


def _listed(mismatches: list[str]) -> str:
    """All of them, unless they come from a file that has nothing to do with a ResNet18."""
    more = [f"and {len(mismatches) - _MOST} more"] if len(mismatches) > _MOST else []
    return "; ".join(mismatches[:_MOST] + more)


def download_resnet18(
    folder: str | os.PathLike[str], *, url: str = URL, sha256: str = SHA256
) -> pathlib.Path:
    """Downloads torchvision's weights, unless they are already there.

    Args:
      folder: where the file goes, under `FILE_NAME`; created where needed.
      url: where it comes from.
      sha256: the digest that it must have.

    Returns:
      The file's path.

    Raises:
      UserError: no connection, another digest, or a folder that cannot be written. What was
        there stays as it was, and no half a file is left behind.
    """
    target = pathlib.Path(folder) / FILE_NAME
    if target.is_file():
        if _sha256(target) == sha256:
            return target
        raise UserError(f"{target} does not have the sha256 {sha256}; remove it to download it")
    logging.info("downloading %s to %s", url, target)
    partial = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(url, timeout=30) as response,
            tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as file,
        ):
            partial = pathlib.Path(file.name)
            while block := response.read(1 << 20):
                file.write(block)
        digest = _sha256(partial)
        if digest != sha256:
            raise UserError(
                f"{url} came with the sha256 {digest}, not {sha256}: it is damaged or not the "
                "official file; try again, or from another network"
            )
        partial.chmod(0o644)
        partial.replace(target)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise UserError(
            f"{url} could not be downloaded ({error}); get it on a machine that can, and put it "
            f"at {target}"
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return target


def _locate(path: pathlib.Path) -> pathlib.Path:
    """The weights' file, from it or from its folder."""
    if path.is_file():
        return path
    names = (FILE_NAME, FILE_NAME.removesuffix(".pth") + _SUFFIX)
    found = next((path / name for name in names if (path / name).is_file()), None)
    if found is None:
        where = path / FILE_NAME if path.is_dir() else path
        raise UserError(
            f"no ResNet18 weights at {where}; download {URL} and put it there "
            "(vae_attn.models.pretrained.download_resnet18 does)"
        )
    return found


def _sha256(path: pathlib.Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _warn_of_other_weights(path: pathlib.Path, digest: str | None) -> None:
    if digest != SHA256:
        logging.warning(
            "%s has the sha256 %s, not that of torchvision's ImageNet weights (%s): it is taken "
            "for a ResNet18 of your own",
            path,
            digest,
            SHA256,
        )


def _read_state(path: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads a state dict by the file's own first bytes, whatever its name says."""
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{":  # safetensors: length of the header, then the header, which is JSON
        return _read_safetensors(path)[0]
    return read_torch_file(path)


def _read_safetensors(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except Exception as error:  # of a type that numpy lacks, or a text that is none, others come
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"{path} is no readable safetensors file ({shown(reason)}); get the file again"
        ) from error


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].shape}".encode())
        digest.update(np.ascontiguousarray(tensors[name]).tobytes())
    return digest.hexdigest()


def _write_converted(variables: Variables, path: pathlib.Path, source_sha256: str) -> None:
    """Writes the variables with what they were made from, and a digest of their own."""
    tensors = flax.traverse_util.flatten_dict(variables, sep="/")
    metadata = {
        "format": _FORMAT,
        "source_sha256": source_sha256,
        "tensors_sha256": _digest(tensors),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".converting-") as folder:
        partial = pathlib.Path(folder) / path.name
        safetensors.numpy.save_file(tensors, partial, metadata)
        partial.replace(path)


def _read_converted(path: pathlib.Path, source_sha256: str | None) -> Variables:
    """Reads what `_write_converted` wrote; None accepts what any file was converted to."""
    tensors, metadata = _read_safetensors(path)
    remedy = "remove it, and convert the original again"
    if metadata.get("format") != _FORMAT:
        raise UserError(f"{path} is no conversion of the form '{_FORMAT}'; {remedy}")
    if metadata.get("tensors_sha256") != _digest(tensors):
        raise UserError(f"{path} is damaged: its digest is not that of its tensors; {remedy}")
    wanted = {}
    for shape, place in wanted_tensors().values():
        wanted["/".join(place)] = (*shape[2:], *shape[1::-1]) if len(shape) == 4 else shape
    if found := list(mismatches(tensors, wanted)):
        raise UserError(
            f"{path} is not the trunk of ResNet18 ({len(found)} mismatches): "
            f"{_listed(found)}; {remedy}"
        )
    made_from = metadata.get("source_sha256")
    if source_sha256 is None:
        _warn_of_other_weights(path, made_from)
    elif made_from != source_sha256:
        raise UserError(
            f"{path} was made from a file with the sha256 {made_from}, not {source_sha256}; "
            f"{remedy}"
        )
    tensors = {name: np.asarray(value, np.float32) for name, value in tensors.items()}
    return flax.traverse_util.unflatten_dict(tensors, sep="/")
