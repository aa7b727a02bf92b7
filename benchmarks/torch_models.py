"""Our architectures as plain PyTorch modules, with weights that come from ours.

Built from the same tables, so that both sides are the same network. Nothing is tuned: layers in
PyTorch's default memory format, as the public code has them.
"""

import jax
import numpy as np
import torch
from torch import nn

from vae_attn.models import layers
from vae_attn.models.tables import Row
from vae_attn.models.vae import VAE


class TorchVAE(nn.Module):
    """The VAE of the same tables, in PyTorch's layout (batch, channels, height, width)."""

    def __init__(self, model: VAE, variables: dict) -> None:
        """Takes over the weights of `variables`."""
        super().__init__()
        params, stats = variables["params"], variables.get("batch_stats", {})
        height, width, channels = model.image_shape
        self.encoder, width = _layers(
            model.encoder.table.rows,
            (channels, height, width),
            params["encoder"],
            stats.get("encoder", {}),
        )
        self.mean = _linear(params["mean"], width)
        self.logvar = _linear(params["logvar"], width)
        self.decoder, _ = _layers(
            model.decoder.table.rows, model.latents, params["decoder"], stats.get("decoder", {})
        )

    def features(self, x: torch.Tensor, layer: str) -> torch.Tensor:
        """Activations at a named layer of the encoder."""
        for name, module in self.encoder.items():
            x = module(x)
            if name == layer:
                return x
        raise KeyError(layer)

    def head(self, a: torch.Tensor, layer: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance from the activations at a named layer."""
        names = list(self.encoder)
        for name in names[names.index(layer) + 1 :]:
            a = self.encoder[name](a)
        return self.mean(a), self.logvar(a)

    def encode(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and log variance."""
        for module in self.encoder.values():
            x = module(x)
        return self.mean(x), self.logvar(x)

    def decode(self, z: torch.Tensor) -> torch.Tensor:
        """Logits of the pixels."""
        for module in self.decoder.values():
            z = module(z)
        return z


class _BasicBlock(nn.Module):
    def __init__(self, row: layers.Residual, params: dict, stats: dict) -> None:
        super().__init__()
        self.conv1 = _conv(params["conv1"], row.stride, 1)
        self.bn1 = _batch_norm(params["bn1"], stats["bn1"])
        self.conv2 = _conv(params["conv2"], 1, 1)
        self.bn2 = _batch_norm(params["bn2"], stats["bn2"])
        self.shortcut = nn.Identity()
        if "downsample_conv" in params:
            self.shortcut = nn.Sequential(
                _conv(params["downsample_conv"], row.stride, 0),
                _batch_norm(params["downsample_bn"], stats["downsample_bn"]),
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def _layers(
    rows: tuple[Row, ...], shape: tuple[int, int, int] | int, params: dict, stats: dict
) -> tuple[nn.ModuleDict, tuple[int, int, int] | int]:
    """The rows as modules; and the shape after them, channels first, which the next one needs."""
    modules: dict[str, nn.Module] = {}
    for name, row in rows:
        mine = params.get(name, {})
        match row:
            case layers.Conv():
                modules[name] = _conv(mine, row.stride, row.padding)
                shape = (row.features, *_windows(row, shape))
            case layers.ConvTranspose():
                modules[name] = _conv_transpose(mine, row.stride, row.padding)
                height, width = (
                    (n - 1) * row.stride - 2 * row.padding + row.side for n in shape[1:]
                )
                shape = (row.features, height, width)
            case layers.Dense():
                modules[name] = _linear(mine, shape)
                shape = row.features
            case layers.BatchNorm():
                modules[name] = _batch_norm(mine, stats[name])
            case layers.Residual():
                modules[name] = _BasicBlock(row, mine, stats[name])
                shape = (row.features, *(-(-n // row.stride) for n in shape[1:]))
            case layers.MaxPool():
                modules[name] = nn.MaxPool2d(row.side, row.stride, row.padding)
                shape = (shape[0], *_windows(row, shape))
            case layers.Unflatten():
                shape = (row.channels, row.height, row.width)
                modules[name] = nn.Unflatten(1, shape)
                modules[_before(modules, name)] = _linear_to_image(
                    params[_before(modules, name)], shape
                )
            case layers.flatten:
                modules[name] = nn.Flatten()
            case jax.nn.relu:
                modules[name] = nn.ReLU()
            case jax.nn.identity:
                modules[name] = nn.Identity()
            case _:
                raise TypeError(f"no layer of PyTorch for {name}: {row}")
    return nn.ModuleDict(modules), shape


def _windows(row: layers.Conv | layers.MaxPool, shape: tuple[int, int, int]) -> tuple[int, ...]:
    """Height and width of the output."""
    return tuple((n + 2 * row.padding - row.side) // row.stride + 1 for n in shape[1:])


def _before(modules: dict[str, nn.Module], name: str) -> str:
    """The last linear layer before a row."""
    names = list(modules)[: list(modules).index(name)]
    return [n for n in names if isinstance(modules[n], nn.Linear)][-1]


def _tensor(array: np.ndarray) -> nn.Parameter:
    return nn.Parameter(torch.tensor(np.ascontiguousarray(array)))


def _conv(params: dict, stride: int, padding: int) -> nn.Conv2d:
    kernel = np.transpose(params["kernel"], (3, 2, 0, 1))
    out, channels, side, _ = kernel.shape
    bias = "bias" in params
    module = nn.Conv2d(channels, out, side, stride, padding, bias=bias)
    module.weight = _tensor(kernel)
    if bias:
        module.bias = _tensor(params["bias"])
    return module


def _conv_transpose(params: dict, stride: int, padding: int) -> nn.ConvTranspose2d:
    # Ours is the kernel of the convolution whose adjoint this is, as PyTorch's is.
    kernel = np.transpose(params["kernel"], (3, 2, 0, 1))
    channels, out, side, _ = kernel.shape
    module = nn.ConvTranspose2d(channels, out, side, stride, padding)
    module.weight, module.bias = _tensor(kernel), _tensor(params["bias"])
    return module


def _linear(params: dict, shape: tuple[int, int, int] | int) -> nn.Linear:
    """A linear layer, after a flattened image of a shape, channels first, or after a vector."""
    kernel = np.asarray(params["kernel"])
    if not isinstance(shape, int):
        channels, height, width = shape
        kernel = kernel.reshape(height, width, channels, -1).transpose(2, 0, 1, 3)
        kernel = kernel.reshape(channels * height * width, -1)
    module = nn.Linear(*kernel.shape)
    module.weight, module.bias = _tensor(kernel.T), _tensor(params["bias"])
    return module


def _linear_to_image(params: dict, shape: tuple[int, int, int]) -> nn.Linear:
    """The linear layer in front of an unflattening to a shape, channels first."""
    channels, height, width = shape

    def channels_first(array: np.ndarray) -> np.ndarray:
        array = np.asarray(array).reshape(-1, height, width, channels).transpose(0, 3, 1, 2)
        return array.reshape(len(array), -1)

    module = nn.Linear(*np.shape(params["kernel"]))
    module.weight = _tensor(channels_first(params["kernel"]).T)
    module.bias = _tensor(channels_first(params["bias"])[0])
    return module


def _batch_norm(params: dict, stats: dict) -> nn.BatchNorm2d:
    module = nn.BatchNorm2d(len(params["scale"]))
    module.weight, module.bias = _tensor(params["scale"]), _tensor(params["bias"])
    module.running_mean.copy_(torch.tensor(np.asarray(stats["mean"])))
    module.running_var.copy_(torch.tensor(np.asarray(stats["var"])))
    return module


class TorchDiscriminator(nn.Module):
    """FactorVAE's discriminator."""

    def __init__(self, params: dict) -> None:
        """Takes over the weights."""
        super().__init__()
        modules: list[nn.Module] = []
        hidden = sorted((name for name in params if name != "logits"), key=lambda n: int(n[2:]))
        for name in hidden:
            inputs = len(params[name]["kernel"])
            modules += [_linear(params[name], inputs), nn.LeakyReLU(0.2)]
        modules.append(_linear(params["logits"], len(params["logits"]["kernel"])))
        self.net = nn.Sequential(*modules)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Two logits a code."""
        return self.net(z)
