"""One training step: ours as the training loop runs it, and a plain PyTorch loop's."""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch
from torch.nn import functional

from benchmarks.case import OURS, Case, require_close
from benchmarks.timing import Call
from benchmarks.torch_models import TorchDiscriminator, TorchVAE
from vae_attn.data import sampling
from vae_attn.data.augment import Augmentation
from vae_attn.models import registry
from vae_attn.models.discriminator import Discriminator
from vae_attn.training import factor, parallel, state, steps

_EXAMPLES = 512
_LATENTS = 32
_TOLERANCE = 2e-3  # of float32 gradients, summed in another order


def cases() -> list[Case]:
    """All of this file."""

    def vae(name: str, model: str, size: int, batch: int, goal: float, rounds: int) -> Case:
        make = functools.partial(_vae_sides, model, size, batch)
        what = f"training step, {model}, batch {batch}"
        return Case(name, what, batch, "images", make, {"torch": goal}, rounds)

    def factor_vae(name: str, weight: float, what: str, goals: Mapping[str, float]) -> Case:
        make = functools.partial(_factor_sides, weight)
        return Case(name, f"training step, {what}, batch 64", 1, "steps", make, goals, 9)

    return [
        vae("train_mnist", "mnist", 28, 128, 1.5, 15),
        vae("train_ped1", "ucsd_ped1", 100, 32, 1.2, 9),
        vae("train_mvtec", "mvtec_ad", 256, 8, 1.2, 5),
        factor_vae("train_factor_vae", 0.0, "FactorVAE", {"torch": 1.2}),
        factor_vae("train_ad_factor_vae", 1.0, "AD-FactorVAE", {}),
    ]


def _vae_sides(name: str, size: int, batch: int) -> dict[str, Call]:
    model = registry.build(name, image_size=size, latents=_LATENTS, axis_name=steps.AXIS)
    images = _images(model.architecture.image_shape)
    indices = functools.partial(
        sampling.batch_indices, seed=0, batch_size=batch, num_examples=len(images)
    )

    def update(tx: optax.GradientTransformation):
        return steps.make_update_fn(model=model, tx=tx, augment=Augmentation(), beta=1.0)

    # With plain descent at rate 1 the parameters' change is the gradient.
    before = state.create(model=model, tx=optax.sgd(1.0), seed=0)
    theirs = TorchVAE(model, jax.device_get(before.variables))
    after, metrics = _once(update(optax.sgd(1.0)), before, images, indices(step=0))
    noise, _ = _noise(batch, streams=1)
    torch_images = _channels_first(images)
    loss = _vae_loss(theirs, _unit(torch_images[indices(step=0)]), torch.tensor(noise))
    loss.backward()
    require_close("loss", metrics["loss"], loss.item(), tolerance=1e-4)
    _require_same_gradients(model, before.params, after.params, before.variables, theirs)

    optimizer = torch.optim.Adam(theirs.parameters(), lr=1e-3)
    counter = iter(range(10**9))

    def torch_step() -> None:
        x = _unit(torch_images[indices(step=next(counter))])
        loss = _vae_loss(theirs, x, torch.randn(batch, _LATENTS))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()

    tx = optax.adam(1e-3)
    start = state.create(model=model, tx=tx, seed=0)
    ours = _stepper(update(tx), start, images, indices, batch)
    return {OURS: ours, "torch": torch_step}


def _factor_sides(ad_weight: float) -> dict[str, Call]:
    batch, layer = 64, "conv3"
    model = registry.build("dsprites", image_size=64, latents=_LATENTS)
    images = (_images(model.architecture.image_shape) > 127).astype(np.uint8) * 255
    discriminator = Discriminator()
    objective = factor.FactorObjective(gamma=40.0, ad_weight=ad_weight, ad_layer=layer)
    indices = functools.partial(
        factor.two_batches, seed=0, batch_size=batch, num_examples=len(images)
    )

    def networks(tx: optax.GradientTransformation, psi_tx: optax.GradientTransformation) -> dict:
        networks = {"model": model, "discriminator": discriminator}
        return networks | {"tx": tx, "discriminator_tx": psi_tx}

    def update(networks: dict):
        return factor.make_factor_update_fn(
            **networks, objective=objective, pixels_of=steps.to_unit
        )

    still = networks(optax.sgd(1e-3), optax.sgd(1.0))
    before = factor.create(**still, seed=0)
    after, metrics = _once(update(still), before, images, indices(step=0))
    vae = TorchVAE(model, jax.device_get(before.variables))
    psi = TorchDiscriminator(jax.device_get(before.discriminator))
    torch_images = _channels_first(images)
    noise, keys = _noise(batch, streams=2)
    order, pairs = _orders(keys, batch)
    sgd = torch.optim.SGD(vae.parameters(), lr=1e-3)
    descend = torch.optim.SGD(psi.parameters(), lr=0.0)
    draws = (torch.tensor(noise[0]), torch.tensor(noise[1]), order, pairs)
    chosen = indices(step=0)
    xs = (_unit(torch_images[chosen[:, 0]]), _unit(torch_images[chosen[:, 1]]))
    found = _factor_step(vae, psi, sgd, descend, xs, draws, ad_weight, layer)
    require_close("VAE's loss", metrics["loss"], found[0], tolerance=1e-4)
    require_close("its discriminator's", metrics["discriminator_loss"], found[1], tolerance=1e-4)
    gradients = jax.tree.map(lambda a, b: (a - b) / 1e-3, before.vae.params, after.vae.params)
    # Read from parameters that a step of 1e-3 changed, so to fewer digits.
    _require_same(TorchVAE(model, {"params": gradients}), vae, tolerance=2e-2)
    gradients = jax.tree.map(jnp.subtract, before.discriminator, after.discriminator)
    _require_same(TorchDiscriminator(gradients), psi, tolerance=_TOLERANCE)

    adam = torch.optim.Adam(vae.parameters(), lr=1e-4)
    psi_adam = torch.optim.Adam(psi.parameters(), lr=1e-4, betas=(0.5, 0.9))
    counter = iter(range(10**9))

    def torch_step() -> None:
        chosen = indices(step=next(counter))
        xs = (_unit(torch_images[chosen[:, 0]]), _unit(torch_images[chosen[:, 1]]))
        order = torch.stack([torch.randperm(batch) for _ in range(_LATENTS)], dim=1)
        noise = torch.randn(2, batch, _LATENTS)
        draws = (noise[0], noise[1], order, torch.randperm(_LATENTS)[:2].tolist())
        _factor_step(vae, psi, adam, psi_adam, xs, draws, ad_weight, layer)

    ours = networks(optax.adam(1e-4), optax.adam(1e-4, b1=0.5, b2=0.9))
    start = factor.create(**ours, seed=0)
    return {OURS: _stepper(update(ours), start, images, indices, batch), "torch": torch_step}


def _factor_step(vae, psi, adam, psi_adam, xs, draws, ad_weight: float, layer: str) -> tuple:
    """FactorVAE's algorithm 2 as a plain PyTorch step; returns both losses."""
    noise, other_noise, order, pair = draws
    x, other_x = xs
    features = vae.features(x, layer)
    hidden = features
    names = list(vae.encoder)
    for name in names[names.index(layer) + 1 :]:
        hidden = vae.encoder[name](hidden)
    mean, logvar = vae.mean(hidden), vae.logvar(hidden)
    z = mean + torch.exp(logvar / 2) * noise
    logits = vae.decode(z)
    reconstruction = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum()
    judged = psi(z)
    loss = (reconstruction + kl) / len(x) + 40.0 * (judged[:, 0] - judged[:, 1]).mean()
    if ad_weight:
        maps = []
        for latent in pair:
            (gradient,) = torch.autograd.grad(mean[:, latent].sum(), features, create_graph=True)
            alpha = gradient.mean(dim=(2, 3), keepdim=True)
            maps.append(torch.relu((alpha * features).sum(dim=1)))
        overlap = torch.minimum(*maps).sum(dim=(1, 2))
        total = (maps[0] + maps[1]).sum(dim=(1, 2))
        loss = loss + ad_weight * (2 * overlap / torch.where(total > 0, total, 1.0)).mean()
    adam.zero_grad()
    loss.backward()
    adam.step()

    with torch.no_grad():
        mean, logvar = vae.encode(other_x)
        permuted = (mean + torch.exp(logvar / 2) * other_noise).gather(0, order)
    psi_adam.zero_grad()
    labels = torch.zeros(len(x), dtype=torch.long)
    psi_loss = 0.5 * (
        functional.cross_entropy(psi(z.detach()), labels)
        + functional.cross_entropy(psi(permuted), labels + 1)
    )
    psi_loss.backward()
    psi_adam.step()
    return loss.item(), psi_loss.item()


def _vae_loss(vae: TorchVAE, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    mean, logvar = vae.encode(x)
    logits = vae.decode(mean + torch.exp(logvar / 2) * noise)
    reconstruction = functional.binary_cross_entropy_with_logits(logits, x, reduction="sum")
    kl = 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum()
    return (reconstruction + kl) / len(x)


def _stepper(update, start, images: np.ndarray, indices, batch: int) -> Call:
    """A call that makes our next step and waits for it."""
    step_all = parallel.parallelize(update, mode="pmap", batch_size=batch)
    current, images = parallel.replicate((start, images))
    counter = iter(range(10**9))

    def step() -> None:
        nonlocal current
        current, metrics = step_all(current, images, indices(step=next(counter)))
        jax.block_until_ready((current, metrics))

    return step


def _once(update, before, images: np.ndarray, indices: np.ndarray):
    """The state after a step, and its metrics; the state before is not used up."""
    step = parallel.parallelize(update, mode="pmap", batch_size=len(indices))
    after, metrics = step(*parallel.replicate((before, images)), indices)
    return jax.device_get(after), jax.device_get(metrics)


def _images(shape: tuple[int, int, int]) -> np.ndarray:
    """Random smooth pictures."""
    rng = np.random.default_rng(0)
    height, width, channels = shape
    coarse = rng.random((_EXAMPLES, 4, 4, channels))
    fine = np.repeat(np.repeat(coarse, -(-height // 4), axis=1), -(-width // 4), axis=2)
    return (fine[:, :height, :width] * 255).astype(np.uint8)


def _channels_first(images: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _unit(images: torch.Tensor) -> torch.Tensor:
    return images.float() / 255


def _noise(batch: int, *, streams: int) -> tuple[np.ndarray, jax.Array]:
    """Our noise of step 0, for the check; and the keys of what a step's examples share."""
    keys = jax.vmap(
        lambda _: steps.example_keys(jnp.int32(0), jnp.int32(0), batch), axis_name=steps.AXIS
    )(jnp.zeros(1))[0]
    split = jax.vmap(jax.random.split, out_axes=1)(keys)
    draw = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (_LATENTS,))))
    shared = factor._shared_keys(jnp.int32(0), jnp.int32(0))
    noise = np.array(draw(split))
    return (noise[0] if streams == 1 else noise), shared


def _orders(keys: jax.Array, batch: int) -> tuple[torch.Tensor, list[int]]:
    """Our permutation of every latent over the batch, and our pair of latents, of step 0."""
    rows = jnp.broadcast_to(jnp.arange(batch)[:, None], (batch, _LATENTS))
    order = jax.random.permutation(keys[1], rows, axis=0, independent=True)
    pairs = factor.draw_pairs(keys[0], latents=_LATENTS, pairs=1)
    return torch.tensor(np.array(order, np.int64)), np.array(pairs).ravel().tolist()


def _require_same_gradients(model, before, after, variables, theirs: TorchVAE) -> None:
    gradients = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), before, after)
    ours = TorchVAE(model, jax.device_get(variables) | {"params": gradients})
    _require_same(ours, theirs, tolerance=_TOLERANCE)


def _require_same(ours: torch.nn.Module, theirs: torch.nn.Module, *, tolerance: float) -> None:
    """Compares the parameters of `ours`, which hold gradients, with the gradients of `theirs`."""
    pairs = zip(ours.named_parameters(), theirs.parameters(), strict=True)
    flat = [(a.detach().numpy().ravel(), b.grad.numpy().ravel()) for (_, a), b in pairs]
    ours_all, theirs_all = (np.concatenate(side) for side in zip(*flat, strict=True))
    require_close("gradient", ours_all, theirs_all, tolerance=tolerance)
