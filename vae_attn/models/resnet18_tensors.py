"""The tensors of torchvision's ResNet18 trunk: names, shapes, places in the Flax variables."""

from collections.abc import Iterator, Mapping

import numpy as np

from vae_attn.errors import shown

_STAGES = ((64, 1), (128, 2), (256, 2), (512, 2))  # features, stride of the first block
_NORM = {"weight": "scale", "bias": "bias", "running_mean": "mean", "running_var": "var"}

FlaxPath = tuple[str, ...]


def wanted_tensors() -> dict[str, tuple[tuple[int, ...], FlaxPath]]:
    """Name, shape and place in the Flax variables of each of the trunk's 100 tensors."""
    wanted = dict(_conv_and_norm("conv1", "bn1", (), ("conv1", "bn1"), (64, 3, 7, 7)))
    inputs = 64
    for stage, (features, stride) in enumerate(_STAGES, 1):
        for block in range(2):
            prefix, module = f"layer{stage}.{block}.", (f"layer{stage}_{block}",)
            rows = [("conv1", "bn1", inputs, 3), ("conv2", "bn2", features, 3)]
            if block == 0 and stride != 1:
                rows.append(("downsample.0", "downsample.1", inputs, 1))
            for conv, norm, channels, side in rows:
                names = (conv, norm) if side == 3 else ("downsample_conv", "downsample_bn")
                shape = (features, channels, side, side)
                wanted |= _conv_and_norm(prefix + conv, prefix + norm, module, names, shape)
            inputs = features
    return wanted


def _conv_and_norm(
    conv: str, norm: str, module: FlaxPath, names: tuple[str, str], shape: tuple[int, ...]
) -> Iterator[tuple[str, tuple[tuple[int, ...], FlaxPath]]]:
    """A convolution without bias and the batch normalisation after it, `names` in Flax."""
    yield f"{conv}.weight", (shape, ("params", *module, names[0], "kernel"))
    for torch_name, flax_name in _NORM.items():
        collection = "batch_stats" if torch_name.startswith("running") else "params"
        yield f"{norm}.{torch_name}", (shape[:1], (collection, *module, names[1], flax_name))


def mismatches(
    tensors: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """All that differs from the wanted names and shapes."""
    for name in wanted:
        if name not in tensors:
            yield f"{name} is missing"
    for name, value in tensors.items():
        if name not in wanted:
            yield f"{shown(name)} is unexpected"
        elif value.shape != wanted[name]:
            yield f"{name} has the shape {value.shape}, not {wanted[name]}"
        elif value.dtype.kind != "f":
            yield f"{name} has the type {value.dtype}, not float32"
        elif not _is_finite(value):
            yield f"{name} has values that are not finite"
        elif name.endswith("running_var") and value.min() < 0:
            yield f"{name} has negative variances"


def _is_finite(value: np.ndarray) -> bool:
    with np.errstate(over="ignore"):  # a float64 may be finite, and not as the float32 it becomes
        return bool(np.isfinite(value.astype(np.float32)).all())
