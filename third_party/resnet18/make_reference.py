"""Writes `reference.npz`: what torchvision's own ResNet18 computes, for the parity test.

    python -m pip install torch==2.14.1 torchvision==0.29.1 numpy
    python third_party/resnet18/make_reference.py

The ImageNet weights are too large to keep, and parity does not depend on which weights are
compared: these come from a seed and NumPy alone, so the test makes them again without PyTorch.
The reference is computed in double precision and stored as float32, so that it holds no
rounding of one machine's convolutions.
"""

import hashlib
import math
import pathlib

import numpy as np

SIZES = ((64, 64), (97, 130), (224, 224))  # square, odd and unequal, ImageNet's
PLACES = ("conv1", "layer1", "layer2", "layer3", "layer4")
SAMPLES = 1024  # values kept of each activation, evenly spaced
PATH = pathlib.Path(__file__).with_name("reference.npz")


def seeded_state(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """A state dict of the given names and shapes, drawn in the order of the names.

    Kernels have He's variance, so that activations neither die nor explode; batch
    normalisation has scales, shifts and running statistics that all matter.
    """
    rng = np.random.default_rng(0)
    state = {}
    for name in sorted(shapes):
        shape, kind = shapes[name], name.rpartition(".")[2]
        if len(shape) == 4:
            value = rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))
        elif kind in ("weight", "running_var"):
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.standard_normal(shape) * 0.2
        state[name] = value.astype(np.float32)
    return state


def digest(state: dict[str, np.ndarray]) -> str:
    """Tells a stream of random numbers that changed from a model that did."""
    return hashlib.sha256(b"".join(state[name].tobytes() for name in sorted(state))).hexdigest()


def seeded_images(height: int, width: int) -> np.ndarray:
    """Two images, (2, height, width, 3), as normalised ones are: about -2 to 2."""
    rng = np.random.default_rng((height, width))
    return rng.uniform(-2, 2, (2, height, width, 3)).astype(np.float32)


def summary(activations: np.ndarray) -> dict[str, np.ndarray]:
    """Shape, channel means and evenly spaced values of (batch, height, width, channels)."""
    flat = activations.reshape(-1)
    return {
        "shape": np.array(activations.shape),
        "means": activations.mean((0, 1, 2)),
        "samples": flat[np.linspace(0, len(flat) - 1, SAMPLES).astype(int)],
    }


def main() -> None:
    """Runs torchvision's model on every size and stores the summaries."""
    import torch
    import torchvision

    model = torchvision.models.resnet18(weights=None)
    model.fc = torch.nn.Identity()
    shapes = {
        name: tuple(value.shape)
        for name, value in model.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    state = seeded_state(shapes)
    tensors = {name: torch.from_numpy(value) for name, value in state.items()}
    result = model.load_state_dict(tensors, strict=False)
    assert not result.unexpected_keys
    model.double().eval()

    seen = {}
    for place in PLACES:
        model.get_submodule(place).register_forward_hook(
            lambda module, inputs, output, place=place: seen.update({place: output})
        )
    arrays = {"state_sha256": np.array(digest(state))}
    for height, width in SIZES:
        images = seeded_images(height, width).transpose(0, 3, 1, 2)
        with torch.no_grad():
            model(torch.from_numpy(images).double())
        for place, output in seen.items():
            values = summary(output.numpy().transpose(0, 2, 3, 1))
            for key, value in values.items():
                stored = value if key == "shape" else value.astype(np.float32)
                arrays[f"{height}x{width}/{place}/{key}"] = stored
    arrays["made_with"] = np.array(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    )
    np.savez_compressed(PATH, **arrays)


if __name__ == "__main__":
    main()
