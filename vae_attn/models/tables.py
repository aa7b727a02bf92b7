"""Architectures as data: the rows of a table, and the one module that builds and runs them."""

import dataclasses

import flax.linen as nn
from jaxtyping import Array, Float

from vae_attn.models import layers, windows


@dataclasses.dataclass(frozen=True)
class Conv:
    """Conv 2D, side x side, features, stride, padding."""

    name: str
    features: int
    side: int
    stride: int
    padding: int
    use_bias: bool = True


@dataclasses.dataclass(frozen=True)
class ConvTranspose:
    """ConvTr 2D, side x side, features, stride, padding."""

    name: str
    features: int
    side: int
    stride: int
    padding: int


@dataclasses.dataclass(frozen=True)
class Linear:
    """Linear, features."""

    name: str
    features: int


@dataclasses.dataclass(frozen=True)
class BatchNorm:
    """Batch normalisation over all but the channels."""

    name: str


@dataclasses.dataclass(frozen=True)
class ReLU:
    """max(x, 0)."""

    name: str


@dataclasses.dataclass(frozen=True)
class MaxPool:
    """Maximum over side x side windows."""

    name: str
    side: int
    stride: int
    padding: int


@dataclasses.dataclass(frozen=True)
class Residual:
    """ResNet's basic block (He et al. 2016, Figure 5 left), strided in its first convolution."""

    name: str
    features: int
    stride: int


@dataclasses.dataclass(frozen=True)
class Flatten:
    """(batch, height, width, channels) to (batch, features)."""

    name: str = "flatten"


@dataclasses.dataclass(frozen=True)
class Unflatten:
    """(batch, features) to (batch, height, width, channels)."""

    height: int
    width: int
    channels: int
    name: str = "unflatten"


@dataclasses.dataclass(frozen=True)
class Mark:
    """Does nothing but give the place between two rows a name."""

    name: str


Row = (
    Conv
    | ConvTranspose
    | Linear
    | BatchNorm
    | ReLU
    | MaxPool
    | Residual
    | Flatten
    | Unflatten
    | Mark
)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, as torchvision's BasicBlock."""

    features: int
    stride: int
    initialization: str
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch height width in"], train: bool
    ) -> Float[Array, "batch new_height new_width out"]:
        """Adds the block's output to its (where needed strided) input."""

        def conv(name: str, side: int, stride: int, padding: int) -> layers.Conv:
            scheme = self.initialization
            return layers.Conv(self.features, side, stride, padding, scheme, False, name=name)

        def norm(name: str, y: Array) -> Array:
            norm = layers.BatchNorm(self.axis_name, name=name)
            return norm(y, use_running_average=not train)

        y = nn.relu(norm("bn1", conv("conv1", 3, self.stride, 1)(x)))
        y = norm("bn2", conv("conv2", 3, 1, 1)(y))
        if self.stride != 1 or x.shape[-1] != self.features:
            x = norm("downsample_bn", conv("downsample_conv", 1, self.stride, 0)(x))
        return nn.relu(x + y)


class Layers(nn.Module):
    """The rows of a table, run in order, all of them or those between two named places.

    Attributes:
      rows: the table.
      initialization: initialisation of its weights: `torch` or `normal`.
      axis_name: device axis over which batch statistics are averaged in training.
      frozen: names of rows that run as in evaluation, in training too.
    """

    rows: tuple[Row, ...]
    initialization: str = "torch"
    axis_name: str | None = None
    frozen: tuple[str, ...] = ()

    def setup(self) -> None:
        """Builds the rows that have weights, each under its row's name."""
        scheme, axis_name = self.initialization, self.axis_name
        for row in self.rows:
            match row:
                case Conv(name, features, side, stride, padding, use_bias):
                    module = layers.Conv(features, side, stride, padding, scheme, use_bias)
                case ConvTranspose(name, features, side, stride, padding):
                    module = layers.ConvTranspose(features, side, stride, padding, scheme)
                case Linear(name, features):
                    module = layers.Dense(features, scheme)
                case BatchNorm(name):
                    module = layers.BatchNorm(axis_name)
                case Residual(name, features, stride):
                    module = ResidualBlock(features, stride, scheme, axis_name)
                case _:
                    continue
            setattr(self, name, module)

    def __call__(
        self,
        x: Float[Array, "batch ..."],
        *,
        after: str | None = None,
        until: str | None = None,
        train: bool = False,
    ) -> Float[Array, "batch ..."]:
        """Runs the rows behind `after` (all, if None) up to and with `until` (the end, if None).

        Args:
          x: the input of the first row that runs.
          after: name of the last row that has already run.
          until: name of the last row to run.
          train: whether batch normalisation uses, and records, the batch's statistics.

        Returns:
          The output of the last row.

        Raises:
          ValueError: if a name is not in the table.
        """
        names = [row.name for row in self.rows]
        start = names.index(after) + 1 if after is not None else 0
        stop = names.index(until) + 1 if until is not None else len(names)
        for row in self.rows[start:stop]:
            x = self._run(row, x, train and row.name not in self.frozen)
        return x

    def _run(self, row: Row, x: Array, train: bool) -> Array:
        match row:
            case ReLU():
                return nn.relu(x)
            case MaxPool(_, side, stride, padding):
                return windows.max_pool(x, side, stride, padding)
            case Flatten():
                return x.reshape(x.shape[0], -1)
            case Unflatten(height, width, channels):
                return x.reshape(x.shape[0], height, width, channels)
            case Mark():
                return x
            case BatchNorm(name):
                return getattr(self, name)(x, use_running_average=not train)
            case Residual(name):
                return getattr(self, name)(x, train)
            case _:
                return getattr(self, row.name)(x)
