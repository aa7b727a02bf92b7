"""One training step of a VAE: ours as the training loop runs it, and a plain PyTorch loop's."""

import functools
from collections.abc import Callable

import jax
import numpy as np
import optax
import torch
from torch.nn import functional

from benchmarks.case import OURS, Case, Side
from benchmarks.ours import LATENTS, once, our_noise, setting, stepper, vae_update
from benchmarks.torch_models import TorchVAE
from vae_attn import backend
from vae_attn.data import sampling
from vae_attn.training import state


def cases() -> list[Case]:
    """All of this file."""

    def case(
        name: str, model: str, size: int, batch: int, other: str, side: Callable, *,
        by: str = "", **options,
    ) -> Case:  # fmt: skip
        return Case(
            name=f"train_{name}",
            what=f"training step, {model}, batch {batch}{by}",
            items=batch,
            unit="images",
            sides={
                OURS: functools.partial(_ours, model, size, batch),
                other: functools.partial(side, model, size, batch),
            },
            **options,
        )

    mnist, ped1, mvtec = ("mnist", 28, 128), ("ucsd_ped1", 100, 32), ("mvtec_ad", 256, 8)
    narrow = functools.partial(_ours, dtype="bfloat16")
    return [
        case("mnist", *mnist, "torch", _torch, goals={"torch": 1.5}, rounds=15),
        case("ped1", *ped1, "torch", _torch, goals={"torch": 1.2}),
        # Batch normalisation over eight images lets rounding grow.
        case("mvtec", *mvtec, "torch", _torch, goals={"torch": 1.2}, rounds=5, tolerance=1e-2),
        # The tolerance is that of a gradient in bfloat16.
        case("dtype", *mnist, "ours, bfloat16", narrow, by=", by train.dtype", tolerance=0.1),
        case("options", *mnist, "ours, XLA's defaults", _default_options, by=", by XLA's options"),
        case("fused", *mvtec, "ours, all fused", _all_fused, by=", by what XLA may fuse", rounds=5),
    ]


def _default_options(name: str, size: int, batch: int) -> Side:
    """Ours without what `backend` chooses for the CPU."""
    backend.compiler_options = lambda: None  # in this side's own process
    return _ours(name, size, batch)


def _all_fused(name: str, size: int, batch: int) -> Side:
    """Ours, but XLA may fuse transpositions with what they transpose."""
    backend.transpose = lambda x, axes: x.transpose(axes)  # in this side's own process
    return _ours(name, size, batch)


def _ours(name: str, size: int, batch: int, dtype: str = "float32") -> Side:
    model, _, images = setting(name, size=size)
    indices = functools.partial(
        sampling.batch_indices, seed=0, batch_size=batch, num_examples=len(images)
    )

    def update(tx: optax.GradientTransformation) -> Callable:
        return vae_update(model, tx, dtype)

    # With plain descent at rate 1 the parameters' change is the gradient.
    before = state.create(model=model, tx=optax.sgd(1.0), seed=0)
    after, metrics = once(update(optax.sgd(1.0)), before, images, indices(step=0))
    gradient = jax.tree.map(lambda a, b: np.asarray(a) - b, before.params, after.params)
    theirs = TorchVAE(model, jax.device_get(before.variables) | {"params": gradient})
    values = {"loss": metrics["loss"], "gradient": thinned(p.detach() for p in theirs.parameters())}

    tx = optax.adam(1e-3)
    start = state.create(model=model, tx=tx, seed=0)
    return Side(stepper(update(tx), start, images, indices, batch), values)


def _torch(name: str, size: int, batch: int, *, device: str = "cpu", kind: str = "eager") -> Side:
    """A plain loop: eager, or `channels_last` with fused Adam, or that `compiled` too."""
    model, _, images = setting(name, size=size)
    start = state.create(model=model, tx=optax.sgd(1.0), seed=0)
    layout = torch.contiguous_format if kind == "eager" else torch.channels_last
    vae = TorchVAE(model, jax.device_get(start.variables)).to(device, memory_format=layout)
    images = channels_first(images).to(device)
    indices = functools.partial(
        sampling.batch_indices, seed=0, batch_size=batch, num_examples=len(images)
    )

    def loss_of(x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        mean, logvar = vae.encode(x.contiguous(memory_format=layout))
        logits = vae.decode(mean + torch.exp(logvar / 2) * noise)
        reconstruction = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum()
        return (reconstruction + kl) / len(x)

    if kind == "compiled":  # with CUDA graphs, where there is CUDA
        loss_of = torch.compile(loss_of, mode="reduce-overhead")

    def loss(step: int, noise: torch.Tensor) -> torch.Tensor:
        return loss_of(unit(images[indices(step=step)]), noise)

    value = loss(0, torch.tensor(our_noise(batch, streams=1)).to(device))
    value.backward()
    gradient = thinned(p.grad.contiguous().cpu() for p in vae.parameters())
    values = {"loss": value.item(), "gradient": gradient}
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3, fused=kind != "eager")
    counter = iter(range(10**9))

    def step() -> None:
        value = loss(next(counter), torch.randn(batch, LATENTS, device=device))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        value.item()

    return Side(step, values)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """In PyTorch's layout."""
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def unit(images: torch.Tensor) -> torch.Tensor:
    """Pixels in [0, 1]."""
    return images.float() / 255


def thinned(tensors) -> np.ndarray:
    """Some million numbers of all tensors, to compare."""
    flat = [tensor.numpy().ravel() for tensor in tensors]
    every = max(1, sum(map(len, flat)) // 1_000_000)
    return np.concatenate([part[::every] for part in flat])
