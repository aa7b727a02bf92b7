"""One step of FactorVAE and of AD-FactorVAE: ours, and a plain PyTorch loop's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.nn import functional

from benchmarks.case import OURS, Case, Side
from benchmarks.ours import LATENTS, once, our_noise, pictures, stepper
from benchmarks.torch_models import TorchDiscriminator, TorchVAE
from benchmarks.training import channels_first, thinned, unit
from vae_attn import backend
from vae_attn.models import build
from vae_attn.models.discriminator import Discriminator
from vae_attn.models.vae import VAE
from vae_attn.training import factor, steps

_BATCH = 64
_LAYER = "conv3"
_CHECK_RATE = 1e-3  # of the descent that shows the VAE's gradient


def cases() -> list[Case]:
    """All of this file."""

    def case(name: str, weight: float, what: str, goals: dict[str, float]) -> Case:
        return Case(
            name=f"train_{name}",
            what=f"training step, {what}, batch {_BATCH}",
            items=1,
            unit="steps",
            sides={
                OURS: functools.partial(_ours, weight),
                "torch": functools.partial(_torch, weight),
            },
            goals=goals,
            # The VAE's gradient is read from parameters that one small step changed.
            tolerance=2e-2,
        )

    return [
        case("factor_vae", 0.0, "FactorVAE", {"torch": 1.2}),
        case("ad_factor_vae", 1.0, f"AD-FactorVAE at {_LAYER}", {}),
        Case(
            name="train_dilated",
            what="training step, FactorVAE, by the way of transposed convolutions",
            items=1,
            unit="steps",
            sides={
                OURS: functools.partial(_ours, 0.0),
                "ours, XLA's dilated convolutions": functools.partial(_dilated, 0.0),
            },
            tolerance=2e-2,
        ),
    ]


def _setting() -> tuple[VAE, np.ndarray, functools.partial]:
    model = build.build("dsprites", image_size=64, latents=LATENTS)
    images = np.where(pictures(model.image_shape) > 127, 255, 0).astype(np.uint8)
    indices = functools.partial(
        factor.two_batches, seed=0, batch_size=_BATCH, num_examples=len(images)
    )
    return model, images, indices


def _networks(model: VAE, tx, discriminator_tx) -> dict:
    networks = {"model": model, "discriminator": Discriminator()}
    return networks | {"tx": tx, "discriminator_tx": discriminator_tx}


def _checked(model: VAE) -> dict:
    """Networks whose steps show their gradients."""
    return _networks(model, optax.sgd(_CHECK_RATE), optax.sgd(1.0))


def _ours(ad_weight: float) -> Side:
    model, images, indices = _setting()
    objective = factor.FactorObjective(gamma=40.0, ad_weight=ad_weight, ad_layer=_LAYER)

    def update(networks: dict):
        return factor.make_factor_update_fn(
            **networks, objective=objective, pixels_of=steps.to_unit
        )

    before = factor.create(**_checked(model), seed=0)
    after, metrics = once(update(_checked(model)), before, images, indices(step=0))
    gradient = jax.tree.map(
        lambda a, b: (np.asarray(a) - b) / _CHECK_RATE, before.vae.params, after.vae.params
    )
    psi_gradient = jax.tree.map(
        lambda a, b: np.asarray(a) - b, before.discriminator, after.discriminator
    )
    vae, psi = TorchVAE(model, {"params": gradient}), TorchDiscriminator(psi_gradient)
    values = {
        "loss": metrics["loss"],
        "discriminator's loss": metrics["discriminator_loss"],
        "gradient": thinned(p.detach() for p in vae.parameters()),
        "discriminator's gradient": thinned(p.detach() for p in psi.parameters()),
    }
    networks = _networks(model, optax.adam(1e-4), optax.adam(1e-4, b1=0.5, b2=0.9))
    start = factor.create(**networks, seed=0)
    return Side(stepper(update(networks), start, images, indices, _BATCH), values)


def _dilated(ad_weight: float) -> Side:
    """Ours as on other backends than the CPU."""
    backend.slow_windows = lambda: False  # in this side's own process
    return _ours(ad_weight)


def _torch(ad_weight: float, *, device: str = "cpu") -> Side:
    model, images, indices = _setting()
    before = factor.create(**_checked(model), seed=0)
    vae = TorchVAE(model, jax.device_get(before.variables)).to(device)
    psi = TorchDiscriminator(jax.device_get(before.discriminator)).to(device)
    images = channels_first(images).to(device)

    def batches(step: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = indices(step=step)
        return unit(images[chosen[:, 0]]), unit(images[chosen[:, 1]])

    # The first step with our random numbers, and descents that keep what is compared.
    noise = torch.tensor(our_noise(_BATCH, streams=2)).to(device)
    keys = factor._shared_keys(jnp.int32(0), jnp.int32(0))
    rows = jnp.broadcast_to(jnp.arange(_BATCH)[:, None], (_BATCH, LATENTS))
    order = jax.random.permutation(keys[1], rows, axis=0, independent=True)
    pair = np.array(factor.draw_pairs(keys[0], latents=LATENTS, pairs=1)).ravel().tolist()
    sgd = torch.optim.SGD(vae.parameters(), lr=_CHECK_RATE)
    still = torch.optim.SGD(psi.parameters(), lr=0.0)
    order = torch.tensor(np.array(order, np.int64)).to(device)
    draws = (noise[0], noise[1], order, pair)
    loss, psi_loss = _step(vae, psi, sgd, still, batches(0), draws, ad_weight)
    values = {
        "loss": loss,
        "discriminator's loss": psi_loss,
        "gradient": thinned(p.grad.cpu() for p in vae.parameters()),
        "discriminator's gradient": thinned(p.grad.cpu() for p in psi.parameters()),
    }
    adam = torch.optim.Adam(vae.parameters(), lr=1e-4)
    psi_adam = torch.optim.Adam(psi.parameters(), lr=1e-4, betas=(0.5, 0.9))
    counter = iter(range(10**9))

    def step() -> None:
        order = torch.rand(_BATCH, LATENTS, device=device).argsort(dim=0)
        noise = torch.randn(2, _BATCH, LATENTS, device=device)
        draws = (noise[0], noise[1], order, torch.randperm(LATENTS)[:2].tolist())
        _step(vae, psi, adam, psi_adam, batches(next(counter)), draws, ad_weight)

    return Side(step, values)


def _step(vae, psi, adam, psi_adam, xs, draws, ad_weight: float) -> tuple[float, float]:
    """FactorVAE's algorithm 2 as a plain PyTorch step; returns both losses."""
    noise, other_noise, order, pair = draws
    x, other_x = xs
    features = vae.features(x, _LAYER)
    mean, logvar = vae.head(features, _LAYER)
    z = mean + torch.exp(logvar / 2) * noise
    logits = vae.decode(z)
    reconstruction = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum()
    judged = psi(z)
    loss = (reconstruction + kl) / len(x) + 40.0 * (judged[:, 0] - judged[:, 1]).mean()
    if ad_weight:
        loss = loss + ad_weight * _overlap(mean, features, pair)
    adam.zero_grad()
    loss.backward()
    adam.step()

    with torch.no_grad():
        mean, logvar = vae.encode(other_x)
        permuted = (mean + torch.exp(logvar / 2) * other_noise).gather(0, order)
    psi_adam.zero_grad()
    labels = torch.zeros(len(x), dtype=torch.long, device=x.device)
    psi_loss = 0.5 * (
        functional.cross_entropy(psi(z.detach()), labels)
        + functional.cross_entropy(psi(permuted), labels + 1)
    )
    psi_loss.backward()
    psi_adam.step()
    return loss.item(), psi_loss.item()


def _overlap(mean: torch.Tensor, features: torch.Tensor, pair: list[int]) -> torch.Tensor:
    """The attention disentanglement loss, differentiated through its weights."""
    maps = []
    for latent in pair:
        (gradient,) = torch.autograd.grad(mean[:, latent].sum(), features, create_graph=True)
        alpha = gradient.mean(dim=(2, 3), keepdim=True)
        maps.append(torch.relu((alpha * features).sum(dim=1)))
    overlap = torch.minimum(*maps).sum(dim=(1, 2))
    total = (maps[0] + maps[1]).sum(dim=(1, 2))
    return (2 * overlap / torch.where(total > 0, total, 1.0)).mean()
