"""Our side of a training step; nothing of PyTorch, so that a cold start of ours can be timed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree, UInt8

from vae_attn import attention, backend
from vae_attn.data.augment import Augmentation
from vae_attn.models import build
from vae_attn.models.vae import VAE
from vae_attn.training import parallel, steps

LATENTS = 32
_EXAMPLES = 512


def setting(
    name: str, *, size: int, latents: int = LATENTS
) -> tuple[VAE, PyTree, UInt8[np.ndarray, "n height width channels"]]:
    """A model of `build.build`, its variables, and pictures of its size."""
    model = build.build(name, image_size=size, latents=latents, axis_name=steps.AXIS)
    shape = model.image_shape
    noise = np.zeros((1, latents), np.float32)
    variables = model.init(jax.random.key(0), np.zeros((1, *shape), np.float32), noise)
    return model, variables, pictures(shape)


def latent_maps(model: VAE, layer: str) -> Callable:
    """`maps(variables, images)`: the paper's, of every latent, in the images' size."""
    attend = attention.make_attention_fn(
        features=lambda v, x: model.apply(v, steps.to_unit(x), layer, method="features"),
        head=lambda v, a: model.apply(v, a, layer, method="head"),
        style="paper",
        dense_mean=model.dense_mean(layer),
        per_latent=True,
    )
    return backend.jit(attend)


def encoder(model: VAE) -> Callable:
    """`encode(variables, images)`: mean and log variance."""
    return backend.jit(lambda v, x: model.apply(v, steps.to_unit(x), method="encode"))


def vae_update(
    model: VAE, tx: optax.GradientTransformation, dtype: str = "float32"
) -> steps.UpdateFn:
    """The update of a plain VAE, on images as they are."""
    return steps.make_update_fn(
        model=model,
        tx=tx,
        augment=Augmentation(),
        combine=steps.beta_elbo(1.0),
        dtype=jnp.dtype(dtype),
    )


def stepper(update, start, images: np.ndarray, indices, batch: int) -> Callable[[], None]:
    """A call that makes our next step, as the training loop does, and waits for it."""
    step_all = parallel.parallelize(update, mode="pmap", batch_size=batch)
    current, images = parallel.replicate((start, images))
    counter = iter(range(10**9))

    def step() -> None:
        nonlocal current
        current, metrics = step_all(current, images, indices(step=next(counter)))
        jax.block_until_ready((current, metrics))

    return step


def once(update, before, images: np.ndarray, indices: np.ndarray) -> tuple:
    """The state after a step, and its metrics; the state before is not used up."""
    step = parallel.parallelize(update, mode="pmap", batch_size=len(indices))
    return jax.device_get(step(*parallel.replicate((before, images)), indices))


def pictures(shape: tuple[int, int, int]) -> np.ndarray:
    """Random pictures of 4 x 4 patches with noise (so that no maximum is a tie), uint8."""
    rng = np.random.default_rng(0)
    height, width, channels = shape
    coarse = rng.random((_EXAMPLES, 4, 4, channels))
    fine = np.repeat(np.repeat(coarse, -(-height // 4), axis=1), -(-width // 4), axis=2)
    noise = rng.random((_EXAMPLES, *shape), np.float32)
    return (fine[:, :height, :width] * 204 + noise * 51).astype(np.uint8)


def our_noise(batch: int, *, streams: int) -> np.ndarray:
    """The noise that our step 0 draws, so that the other side can be checked on the same."""
    keys = jax.vmap(
        lambda _: steps.example_keys(jnp.int32(0), jnp.int32(0), batch), axis_name=steps.AXIS
    )(jnp.zeros(1))[0]
    split = jax.vmap(jax.random.split, out_axes=1)(keys)
    noise = np.array(jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (LATENTS,))))(split))
    return noise[0] if streams == 1 else noise
