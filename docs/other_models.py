"""Attention maps of VAEs that are not this package's: of plain JAX functions, and of flax.nnx.

    python docs/other_models.py

Each of the two models is explained in the same few lines, at the end of its section: cut the
encoder into `features` and `head`, make the function, call it. All else is the models' own.
"""

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from sklearn.datasets import load_digits

from vae_attn import attention

LATENTS, WIDTH, SIDE = 4, 16, 8
DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def digits():
    """Handwritten digits, (n, 8, 8, 1) in [0, 1]."""
    return jnp.asarray(load_digits().images[..., None] / 16, jnp.float32)


def train(encode, decode, params, images, *, steps):
    """Some steps of Adam on the negative evidence lower bound, of whatever model."""

    def loss(params, images, key):
        mean, logvar = encode(params, images)
        z = mean + jnp.exp(logvar / 2) * jax.random.normal(key, mean.shape)
        logits = decode(params, z)
        error = optax.sigmoid_binary_cross_entropy(logits, images).sum(axis=(1, 2, 3))
        kl = 0.5 * (jnp.exp(logvar) + mean**2 - 1 - logvar).sum(axis=1)
        return (error + kl).mean()

    tx = optax.adam(3e-3)

    @jax.jit
    def update(params, state, key):
        batch = jax.random.choice(key, images, (64,))
        updates, state = tx.update(jax.grad(loss)(params, batch, key), state)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for key in jax.random.split(jax.random.key(1), steps):
        params, state = update(params, state, key)
    return params


# A VAE of plain functions: its parameters are a dict, and it is cut after its convolution.


def plain_features(params, images):
    """The convolution: A, (n, 8, 8, 16)."""
    return jax.lax.conv_general_dilated(
        images, params["conv"], (1, 1), "SAME", dimension_numbers=DIMENSIONS
    )


def plain_head(params, a):
    """The rest of the encoder: mean and log variance, each (n, latents)."""
    hidden = jax.nn.relu(a).reshape(a.shape[0], -1)
    return hidden @ params["mean"], hidden @ params["logvar"]


def plain_encode(params, images):
    """The encoder is its two halves."""
    return plain_head(params, plain_features(params, images))


def plain_decode(params, z):
    """Logits of the images."""
    return (z @ params["decoder"] + params["bias"]).reshape(-1, SIDE, SIDE, 1)


def plain_params():
    """Random parameters."""
    inputs = SIDE * SIDE * WIDTH
    shapes = {
        "conv": (3, 3, 1, WIDTH),
        "mean": (inputs, LATENTS),
        "logvar": (inputs, LATENTS),
        "decoder": (LATENTS, SIDE * SIDE),
        "bias": (SIDE * SIDE,),
    }
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return {
        name: 0.05 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def explain_plain(images, *, steps=300):
    """Trains the plain VAE and explains the first images, per latent."""
    params = train(plain_encode, plain_decode, plain_params(), images, steps=steps)
    shown = images[:5]

    attend = attention.make_attention_fn(
        features=plain_features, head=plain_head, style="paper", per_latent=True
    )
    return params, attend(params, shown)  # (5, latents, 8, 8), in the images' size


# A VAE of flax.nnx: an object with methods. Its parameters are taken out of it and put back.


class NnxVAE(nnx.Module):
    """Two convolutions, cut after the second."""

    def __init__(self, rngs):
        """Builds the layers."""
        self.conv1 = nnx.Conv(1, WIDTH, (3, 3), rngs=rngs)
        self.conv2 = nnx.Conv(WIDTH, WIDTH, (3, 3), strides=2, rngs=rngs)
        self.mean = nnx.Linear(SIDE * SIDE * WIDTH // 4, LATENTS, rngs=rngs)
        self.logvar = nnx.Linear(SIDE * SIDE * WIDTH // 4, LATENTS, rngs=rngs)
        self.decoder = nnx.Linear(LATENTS, SIDE * SIDE, rngs=rngs)

    def features(self, images):
        """A, (n, 4, 4, 16)."""
        return self.conv2(nnx.relu(self.conv1(images)))

    def head(self, a):
        """Mean and log variance, each (n, latents)."""
        hidden = nnx.relu(a).reshape(a.shape[0], -1)
        return self.mean(hidden), self.logvar(hidden)

    def encode(self, images):
        """Mean and log variance."""
        return self.head(self.features(images))

    def decode(self, z):
        """Logits of the images."""
        return self.decoder(z).reshape(-1, SIDE, SIDE, 1)


def explain_nnx(images, *, steps=300):
    """Trains the nnx VAE and explains the first images: what in them is not normal for it."""
    graph, state = nnx.split(NnxVAE(nnx.Rngs(0)))

    def method(name):
        return lambda state, x: getattr(nnx.merge(graph, state), name)(x)

    state = train(method("encode"), method("decode"), state, images, steps=steps)
    shown = images[:5]
    mean, _ = method("encode")(state, shown)
    reconstructions = jax.nn.sigmoid(method("decode")(state, mean))

    attend = attention.make_attention_fn(
        features=method("features"), head=method("head"), style="contrast"
    )
    return method, state, reconstructions, attend(state, shown, reconstructions)  # (5, 8, 8)


if __name__ == "__main__":
    print("plain functions, per latent:", explain_plain(digits())[-1].shape)
    print("flax.nnx, contrast:", explain_nnx(digits())[-1].shape)
