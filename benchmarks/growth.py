"""How the cost of maps and of training grows: with batch, latents, image size and devices."""

import functools

import jax
import optax

from benchmarks.case import OURS, Case, Side
from benchmarks.ours import encoder, latent_maps, setting, stepper, vae_update
from vae_attn.data import sampling
from vae_attn.training import state


def cases() -> list[Case]:
    """One line for each value; all of ours."""
    found = []
    for batch in (16, 64, 256):
        found.append(_case(f"batch={batch}", "mnist", "conv2", 28, batch, 32))
    for latents in (8, 32, 128, 256):
        found.append(_case(f"latents={latents}", "mnist", "conv2", 28, 64, latents))
    for size in (64, 128, 256):
        found.append(_case(f"size={size}", "convnet", "conv2", size, 8, 32))
    for devices in (1, 2, 4, 8):
        what = f"training step, mnist, batch 128, on {devices} simulated devices of this CPU"
        sides = {OURS: functools.partial(_train_on, devices)}
        found.append(Case(f"growth_devices={devices}", what, 128, "images", sides, rounds=5))
    return found


def _case(value: str, model: str, layer: str, size: int, batch: int, latents: int) -> Case:
    what = f"{model} {layer}, {size} px, batch {batch}, {latents} latents"
    sides = {
        OURS: functools.partial(_maps, model, layer, size, batch, latents),
        "one encoder pass": functools.partial(_encode, model, size, batch, latents),
        "one training step": functools.partial(train, model, size, batch, latents),
    }
    return Case(f"growth_{value}", f"maps, {what}", batch, "images", sides, rounds=5)


def _maps(name: str, layer: str, size: int, batch: int, latents: int) -> Side:
    model, variables, images = setting(name, size=size, latents=latents)
    maps, images = latent_maps(model, layer), images[:batch]
    return Side(lambda: maps(variables, images).block_until_ready(), {})


def _encode(name: str, size: int, batch: int, latents: int) -> Side:
    model, variables, images = setting(name, size=size, latents=latents)
    encode, images = encoder(model), images[:batch]
    return Side(lambda: jax.block_until_ready(encode(variables, images)), {})


def _train_on(devices: int) -> Side:
    """They share the same cores: what grows is the cost of splitting and of adding up."""
    # Before this side's process uses any device.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    return train("mnist", 28, 128, 32)


def train(name: str, size: int, batch: int, latents: int) -> Side:
    """One training step of a model."""
    model, _, images = setting(name, size=size, latents=latents)
    tx = optax.adam(1e-3)
    update = vae_update(model, tx)
    start = state.create(model=model, tx=tx, seed=0)
    indices = functools.partial(
        sampling.batch_indices, seed=0, batch_size=batch, num_examples=len(images)
    )
    return Side(stepper(update, start, images, indices, batch), {})
