"""Models as a stranger writes them, as `model.name=own_models:NAME`: nothing of this package's.

`vae` and `listed` are whole; each of the others breaks what a model has to do in one way.
"""

import flax.linen as nn
import jax.numpy as jnp


class TwoBlocks(nn.Module):
    """Two blocks with batch normalisation, cut after either."""

    latents: int
    image_shape: tuple
    width: int
    axis_name: str | None

    def setup(self):
        self.first = nn.Conv(self.width, (4, 4), strides=4)
        self.norm = nn.BatchNorm(axis_name=self.axis_name)
        self.second = nn.Conv(self.width, (3, 3))
        self.codes = nn.Dense(2 * self.latents)
        height, width, channels = self.image_shape
        self.expand = nn.Dense(height // 4 * (width // 4) * 4)
        self.paint = nn.ConvTranspose(channels, (4, 4), strides=(4, 4))

    def _one(self, x, train):
        return nn.gelu(self.norm(self.first(x), use_running_average=not train))

    def features(self, images, layer, *, train):
        if layer not in ("one", "two"):
            raise KeyError(layer)
        x = self._one(images, train)
        return x if layer == "one" else self.second(x)

    def head(self, features, layer, *, train):
        x = self.second(features) if layer == "one" else features
        codes = self.codes(nn.gelu(x).reshape(x.shape[0], -1))
        return codes[:, : self.latents], codes[:, self.latents :]

    def decode(self, z, *, train):
        height, width, _ = self.image_shape
        x = nn.gelu(self.expand(z)).reshape(-1, height // 4, width // 4, 4)
        return self.paint(x)


class Listed(TwoBlocks):
    layers = ("one", "two")


class Plain(TwoBlocks):
    """Without batch normalisation, so that a discriminator may stand beside it."""

    def _one(self, x, train):
        return nn.gelu(self.first(x))


def made(kind):
    def function(*, latents, image_shape, axis_name, width=4, **options):
        return kind(latents, image_shape, width, axis_name)

    return function


vae, listed, plain = made(TwoBlocks), made(Listed), made(Plain)


class WithoutDecode(nn.Module):
    def features(self, images, layer, *, train):
        return images

    def head(self, features, layer, *, train):
        return features, features


class Flat(TwoBlocks):
    def features(self, images, layer, *, train):
        x = super().features(images, layer, train=train)
        return x.reshape(x.shape[0], -1)


class MeanAlone(TwoBlocks):
    def head(self, features, layer, *, train):
        return super().head(features, layer, train=train)[0]


class ShortLogvar(TwoBlocks):
    def head(self, features, layer, *, train):
        mean, logvar = super().head(features, layer, train=train)
        return mean, logvar[:, :1]


class SmallPictures(TwoBlocks):
    def decode(self, z, *, train):
        return super().decode(z, train=train)[:, ::2, ::2]


class Counting(TwoBlocks):
    def setup(self):
        super().setup()
        self.calls = self.variable("counters", "calls", lambda: jnp.zeros(()))


class Broken(TwoBlocks):
    def decode(self, z, *, train):
        raise RuntimeError("the brush is gone\nsecond line")


flat, mean_alone, short_logvar = made(Flat), made(MeanAlone), made(ShortLogvar)
small_pictures, counting, broken = made(SmallPictures), made(Counting), made(Broken)


def without_decode(**options):
    return WithoutDecode()


def no_module(**options):
    return {"features": None}


def failing(*, latents, **options):
    return latents / 0


def closed(*, latents):
    return None


number = 3
