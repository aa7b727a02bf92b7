"""What FactorVAE's discriminator sees of Gaussian codes whose total correlation is known.

    python -m benchmarks.discriminator [--steps=400] [--deviation=0.05]

Trains the real discriminator, as `factor_vae` does (batches of 64, Adam 1e-4 with betas .5 and .9),
on codes of one deviation that do not change, and prints a row for each input and initialisation.
"""

import argparse
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vae_attn import losses
from vae_attn.models.discriminator import Discriminator
from vae_attn.training.discriminator_input import INPUTS
from vae_attn.training.factor import INITIALIZATIONS
from vae_attn.training.steps import AXIS

_LATENTS, _BATCH, _JUDGED = 10, 64, 4096
_CORRELATION = 0.8  # of each of four pairs of latents; the last two are independent
TRUE = 4 * -0.5 * np.log(1 - _CORRELATION**2)


def draw(key: jax.Array, scale: float, num: int) -> jax.Array:
    """Codes of one deviation."""
    noise = jax.random.normal(key, (num, _LATENTS))
    first, second, rest = noise[:, :4], noise[:, 4:8], noise[:, 8:]
    paired = _CORRELATION * first + np.sqrt(1 - _CORRELATION**2) * second
    return scale * jnp.concatenate([first, paired, rest], axis=1)


def estimate(scale: float, seen: str, initialization: str, steps: int) -> tuple[float, float]:
    """The trained discriminator's estimate in nats, and its accuracy, on new codes."""
    network, sees = Discriminator(initialization=initialization), INPUTS[seen]
    params = network.init(jax.random.key(0), jnp.zeros((1, _LATENTS)))
    tx = optax.adam(1e-4, b1=0.5, b2=0.9)

    def judge(params, key: jax.Array, num: int) -> tuple[jax.Array, jax.Array]:
        of_codes, of_others, permuting = jax.random.split(key, 3)
        others = draw(of_others, scale, num)
        permuted = jax.random.permutation(permuting, others, axis=0, independent=True)
        z = jnp.concatenate([sees(draw(of_codes, scale, num)), sees(permuted)])
        return tuple(jnp.split(network.apply(params, z), 2))

    def loss(params, key: jax.Array) -> jax.Array:
        joint, permuted = judge(params, key, _BATCH)
        return losses.discriminator_loss(joint_logits=joint, permuted_logits=permuted).mean()

    def named(fn):
        """On one device that has the axis."""
        mapped = jax.vmap(fn, in_axes=(None, None, 0), axis_name=AXIS)
        return lambda *args: jax.tree.map(lambda x: x[0], mapped(*args, jnp.zeros(1)))

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params, opt_state, key):
        gradient = named(lambda p, k, _: jax.grad(loss)(p, k))(params, key)
        updates, opt_state = tx.update(gradient, opt_state)
        return optax.apply_updates(params, updates), opt_state

    opt_state = tx.init(params)
    for number in range(steps):
        key = jax.random.fold_in(jax.random.key(1), number)
        params, opt_state = step(params, opt_state, key)
    key = jax.random.fold_in(jax.random.key(1), steps)
    joint, permuted = jax.jit(named(lambda p, k, _: judge(p, k, _JUDGED)))(params, key)
    right = jnp.concatenate([joint[:, 0] > joint[:, 1], permuted[:, 1] > permuted[:, 0]])
    return float(losses.total_correlation(logits=joint).mean()), float(right.mean())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--deviation", type=float, default=0.05, help="of each latent")
    options = parser.parse_args()
    print(f"total correlation {TRUE:.2f} nats, codes of deviation {options.deviation:g}\n")
    print("| seen | initialisation | estimate, nats | accuracy |\n|---|---|---|---|", flush=True)
    for initialization in INITIALIZATIONS:
        for seen in ("codes", "standardized"):
            found, right = estimate(options.deviation, seen, initialization, options.steps)
            print(f"| {seen} | {initialization} | {found:.2f} | {right:.2f} |", flush=True)


if __name__ == "__main__":
    main()
