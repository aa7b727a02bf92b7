"""Maps of all latents: ours, and two ways to them in PyTorch; and their cost in encoder passes."""

import functools

import jax
import numpy as np
import torch
from torch.nn import functional

from benchmarks.case import OURS, Case, Side
from benchmarks.ours import LATENTS, encoder, latent_maps, setting
from benchmarks.torch_models import TorchVAE
from benchmarks.training import channels_first, unit
from vae_attn import attention, backend
from vae_attn.models.vae import VAE
from vae_attn.training.steps import to_unit

ENCODER = "one encoder pass"
_SIZES = {"mnist": (28, 128), "ucsd_ped1": (100, 32), "mvtec_ad": (256, 8)}


def cases() -> list[Case]:
    """All of this file."""
    return [
        _maps("mnist", "conv2", {"torch, backward passes": 10, "torch, to the features": 4}),
        _maps("mnist", "conv1", {}),
        _maps("ucsd_ped1", "conv3", {}),
        _alone("mnist", "conv2", {}),
        _alone("ucsd_ped1", "conv3", {}),
        # Nothing but linear layers follows: the goal is 1.2 encoder passes.
        _alone("mvtec_ad", "layer4", {ENCODER: 1 / 1.2}),
    ]


def _maps(name: str, layer: str, goals: dict[str, float]) -> Case:
    sides = {
        OURS: functools.partial(_ours, name, layer),
        "torch, backward passes": functools.partial(_torch_hooks, name, layer),
        "torch, to the features": functools.partial(_torch_tuned, name, layer),
    }
    return _case("maps", "its size", name, layer, sides, goals)


def _alone(name: str, layer: str, goals: dict[str, float]) -> Case:
    sides = {
        OURS: functools.partial(_ours_alone, name, layer),
        ENCODER: functools.partial(_encoder_alone, name),
    }
    return _case("alone", "the features' size", name, layer, sides, goals)


def _case(kind: str, where: str, name: str, layer: str, sides: dict, goals: dict) -> Case:
    batch = _SIZES[name][1]
    what = f"{LATENTS} maps per image in {where}, {name} {layer}, batch {batch}"
    return Case(f"{kind}_{name}_{layer}", what, batch, "images", sides, goals, rounds=7)


def _setting(name: str) -> tuple[VAE, dict, np.ndarray]:
    """A model, its variables and a batch of images."""
    size, batch = _SIZES[name]
    model, variables, images = setting(name, size=size)
    return model, variables, images[:batch]


def _ours(name: str, layer: str) -> Side:
    model, variables, images = _setting(name)
    maps = latent_maps(model, layer)
    return Side(
        lambda: maps(variables, images).block_until_ready(),
        {"maps": np.asarray(maps(variables, images))},
    )


def _ours_alone(name: str, layer: str) -> Side:
    model, variables, images = _setting(name)

    @backend.jit
    def maps(v, x):
        a = model.apply(v, to_unit(x), layer, method="features")
        dense = model.dense_mean(layer)
        mean = dense(v) if dense else lambda a: model.apply(v, a, layer, method="head")[0]
        return attention.paper_maps(mean, a)

    return Side(lambda: maps(variables, images).block_until_ready(), {})


def _encoder_alone(name: str) -> Side:
    model, variables, images = _setting(name)
    encode = encoder(model)
    return Side(lambda: jax.block_until_ready(encode(variables, images)), {})


def _torch_setting(name: str) -> tuple[TorchVAE, torch.Tensor]:
    model, variables, images = _setting(name)
    return TorchVAE(model, jax.device_get(variables)).eval(), channels_first(images)


def _torch_hooks(name: str, layer: str) -> Side:
    """Grad-CAM as the public code is used: hooks, and one whole backward pass for every latent."""
    vae, images = _torch_setting(name)
    kept = {}
    module = vae.encoder[layer]
    module.register_forward_hook(lambda _, inputs, output: kept.update(activation=output))
    module.register_full_backward_hook(lambda _, inputs, outputs: kept.update(gradient=outputs[0]))

    def maps() -> torch.Tensor:
        mean, _ = vae.encode(unit(images))
        found = []
        for latent in range(LATENTS):
            vae.zero_grad()
            mean[:, latent].sum().backward(retain_graph=True)
            found.append(_map(kept["gradient"], kept["activation"]).detach())
        return _resized(torch.stack(found, dim=1), images)

    return Side(maps, {"maps": maps().numpy()})


def _torch_tuned(name: str, layer: str) -> Side:
    """The gradients as far as the features only, and none of the parameters."""
    vae, images = _torch_setting(name)
    vae.requires_grad_(False)

    def maps() -> torch.Tensor:
        with torch.no_grad():
            features = vae.features(unit(images), layer)
        features.requires_grad_(True)
        mean, _ = vae.head(features, layer)
        found = []
        for latent in range(LATENTS):
            (gradient,) = torch.autograd.grad(mean[:, latent].sum(), features, retain_graph=True)
            found.append(_map(gradient, features.detach()))
        return _resized(torch.stack(found, dim=1), images)

    return Side(maps, {"maps": maps().numpy()})


def _map(gradient: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    alpha = gradient.mean(dim=(2, 3), keepdim=True)
    return torch.relu((alpha * features).sum(dim=1))


def _resized(maps: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(maps, images.shape[2:], mode="bilinear", align_corners=False)
