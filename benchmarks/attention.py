"""Maps of all latents: ours, and two ways to them in PyTorch; and their cost in encoder passes."""

import functools

import jax
import numpy as np
import torch
from torch.nn import functional

from benchmarks.case import OURS, Case, Side
from benchmarks.ours import LATENTS, pictures
from benchmarks.torch_models import TorchVAE
from benchmarks.training import channels_first, unit
from vae_attn import attention, backend
from vae_attn.models import registry
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
    batch = _SIZES[name][1]
    return Case(
        name=f"maps_{name}_{layer}",
        what=f"{LATENTS} maps an image in its size, {name} {layer}, batch {batch}",
        items=batch,
        unit="images",
        sides={
            OURS: functools.partial(_ours, name, layer),
            "torch, backward passes": functools.partial(_torch_hooks, name, layer),
            "torch, to the features": functools.partial(_torch_tuned, name, layer),
        },
        goals=goals,
        rounds=7,
    )


def _alone(name: str, layer: str, goals: dict[str, float]) -> Case:
    batch = _SIZES[name][1]
    return Case(
        name=f"alone_{name}_{layer}",
        what=f"{LATENTS} maps an image in the features' size, {name} {layer}, batch {batch}",
        items=batch,
        unit="images",
        sides={
            OURS: functools.partial(_ours_alone, name, layer),
            ENCODER: functools.partial(_encoder_alone, name),
        },
        goals=goals,
    )


def setting(name: str, *, latents: int = LATENTS) -> tuple[VAE, dict, np.ndarray]:
    """A model, its variables and a batch of images, uint8."""
    size, batch = _SIZES[name]
    model = registry.build(name, image_size=size, latents=latents)
    shape = model.architecture.image_shape
    key = jax.random.key(0)
    variables = model.init(key, np.zeros((1, *shape), np.float32), np.zeros((1, latents)))
    return model, variables, pictures(shape)[:batch]


def _ours(name: str, layer: str) -> Side:
    model, variables, images = setting(name)
    attend = attention.make_attention_fn(
        features=lambda v, x: model.apply(v, to_unit(x), layer, method="features"),
        head=lambda v, a: model.apply(v, a, layer, method="head"),
        style="paper",
        dense_mean=model.dense_mean(layer),
        per_latent=True,
    )
    attend = backend.jit(attend)
    return Side(
        lambda: attend(variables, images).block_until_ready(),
        {"maps": np.asarray(attend(variables, images))},
    )


def _ours_alone(name: str, layer: str) -> Side:
    model, variables, images = setting(name)

    @backend.jit
    def maps(v, x):
        a = model.apply(v, to_unit(x), layer, method="features")
        dense = model.dense_mean(layer)
        mean = dense(v) if dense else lambda a: model.apply(v, a, layer, method="head")[0]
        return attention.paper_maps(mean, a)

    return Side(lambda: maps(variables, images).block_until_ready(), {})


def _encoder_alone(name: str) -> Side:
    model, variables, images = setting(name)

    @backend.jit
    def encode(v, x):
        return model.apply(v, to_unit(x), method="encode")

    return Side(lambda: jax.block_until_ready(encode(variables, images)), {})


def _torch_setting(name: str) -> tuple[TorchVAE, torch.Tensor]:
    model, variables, images = setting(name)
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
