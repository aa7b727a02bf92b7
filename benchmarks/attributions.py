"""Exact maps of all latents: ours, and Captum's, which explains one latent at a time."""

import functools
import warnings
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from captum import attr

from benchmarks.case import OURS, Case, Side
from benchmarks.ours import LATENTS, encoder, setting
from benchmarks.torch_models import TorchVAE
from benchmarks.training import channels_first, unit
from vae_attn import attributions, backend
from vae_attn.models.vae import VAE
from vae_attn.training.steps import to_unit

DEEPLIFT, GRADIENTS = "deeplift", "integrated_gradients"
ENCODER = "one encoder pass"
_STEPS = 16
_AT_ONCE = 4  # latents of ours at once: on two cores a fifth faster than all, and less memory
_SIZES = {"mnist": (28, 128), "ucsd_ped1": (100, 32), "mvtec_ad": (256, 8), "dsprites": (64, 64)}


def cases() -> list[Case]:
    """All of this file."""
    gradients = {"Captum's integrated gradients": functools.partial(_captum, "mnist", GRADIENTS)}
    both = {"Captum's DeepLift": functools.partial(_captum, "mnist", DEEPLIFT)} | gradients
    return [
        _case("exact", "mnist", DEEPLIFT, both, dict.fromkeys(both, 5)),
        _case("exact_in_steps", "mnist", GRADIENTS, gradients, {}),
        *(
            _case("exact_alone", name, DEEPLIFT, {ENCODER: functools.partial(_encoder, name)}, {})
            for name in _SIZES
        ),
    ]


def _case(kind: str, name: str, style: str, sides: dict, goals: dict) -> Case:
    batch = _SIZES[name][1]
    what = f"signed maps of {LATENTS} latents, {name}, batch {batch}, {style}"
    sides = {OURS: functools.partial(_ours, name, style)} | sides
    # Their calls take seconds each, and the check has compiled ours.
    long = {"rounds": 3, "warm_up": False} if kind != "exact_alone" else {"rounds": 5}
    return Case(f"{kind}_{name}", what, batch, "images", sides, goals, **long)


def _setting(name: str) -> tuple[VAE, dict, np.ndarray, np.ndarray]:
    """A model, its variables, and images with others as their baselines."""
    size, batch = _SIZES[name]
    model, variables, images = setting(name, size=size)
    return model, variables, images[:batch], images[batch : 2 * batch]


def _ours(name: str, style: str) -> Side:
    model, variables, images, others = _setting(name)
    options = {"steps": _STEPS} if style == GRADIENTS else {}
    options["latent_batch_size"] = _AT_ONCE

    @backend.jit
    def maps(v: dict, x: jax.Array, baselines: jax.Array) -> jax.Array:
        def mean(x: jax.Array) -> jax.Array:
            return model.apply(v, x, method="encode")[0]

        x, baselines = to_unit(x), to_unit(baselines)
        return getattr(attributions, style)(mean, x, baselines, **options).sum(axis=-1)

    inputs = (variables, jnp.asarray(images), jnp.asarray(others))
    return Side(lambda: maps(*inputs).block_until_ready(), {style: np.asarray(maps(*inputs))})


def _encoder(name: str) -> Side:
    model, variables, images, _ = _setting(name)
    encode = encoder(model)
    return Side(lambda: jax.block_until_ready(encode(variables, images)), {})


class _Mean(torch.nn.Module):
    """The part of a VAE that is explained."""

    def __init__(self, vae: TorchVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.vae.encode(x)[0]


def _captum(name: str, style: str) -> Side:
    warnings.simplefilter("ignore")  # that hooks are set
    model, variables, images, others = _setting(name)
    mean = _Mean(TorchVAE(model, jax.device_get(variables)).eval()).requires_grad_(False)
    x, baselines = (unit(channels_first(of)) for of in (images, others))
    attribute: Callable[..., torch.Tensor]
    if style == DEEPLIFT:
        attribute = attr.DeepLift(mean).attribute
    else:
        method = attr.IntegratedGradients(mean)
        attribute = functools.partial(method.attribute, n_steps=_STEPS, method="riemann_middle")

    def maps() -> torch.Tensor:
        found = [attribute(x, baselines, target=latent).detach() for latent in range(LATENTS)]
        return torch.stack(found, dim=1).sum(dim=2)

    return Side(maps, {style: maps().numpy()})
