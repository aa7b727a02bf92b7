"""Our architectures as plain PyTorch modules, with weights that come from ours.

Built from the same tables, so that both sides are the same network. Nothing is tuned: layers in
PyTorch's default memory format, as the public code has them.
"""

import numpy as np
import torch
from torch import nn

from vae_attn.models import tables
from vae_attn.models.vae import VAE


class TorchVAE(nn.Module):
    """The VAE of an `Architecture`, in PyTorch's layout (batch, channels, height, width)."""

    def __init__(self, model: VAE, variables: dict) -> None:
        """Takes over the weights of `variables`."""
        super().__init__()
        params, stats = variables["params"], variables.get("batch_stats", {})
        architecture = model.architecture
        shape = (architecture.image_shape[2], *architecture.image_shape[:2])
        self.encoder, width = _layers(
            architecture.encoder, shape, params["encoder"], stats.get("encoder", {})
        )
        self.mean = _linear(params["mean"], width)
        self.logvar = _linear(params["logvar"], width)
        self.decoder, _ = _layers(
            architecture.decoder, model.latents, params["decoder"], stats.get("decoder", {})
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
    def __init__(self, row: tables.Residual, channels: int, params: dict, stats: dict) -> None:
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
    rows: tuple[tables.Row, ...], shape: tuple[int, int, int] | int, params: dict, stats: dict
) -> tuple[nn.ModuleDict, tuple[int, int, int] | int]:
    """The rows as modules; and the shape behind them, channels first, which the next one needs."""
    modules: dict[str, nn.Module] = {}
    for row in rows:
        mine = params.get(row.name, {})
        match row:
            case tables.Conv(name, features, side, stride, padding):
                modules[name] = _conv(mine, stride, padding)
                height, width = ((n + 2 * padding - side) // stride + 1 for n in shape[1:])
                shape = (features, height, width)
            case tables.ConvTranspose(name, features, side, stride, padding):
                modules[name] = _conv_transpose(mine, stride, padding)
                height, width = ((n - 1) * stride - 2 * padding + side for n in shape[1:])
                shape = (features, height, width)
            case tables.Linear(name, features):
                modules[name] = _linear(mine, shape)
                shape = features
            case tables.BatchNorm(name):
                modules[name] = _batch_norm(mine, stats[name])
            case tables.Residual(name, features, stride):
                modules[name] = _BasicBlock(row, shape[0], mine, stats[name])
                shape = (features, *(-(-n // stride) for n in shape[1:]))
            case tables.ReLU(name):
                modules[name] = nn.ReLU()
            case tables.MaxPool(name, side, stride, padding):
                modules[name] = nn.MaxPool2d(side, stride, padding)
                height, width = ((n + 2 * padding - side) // stride + 1 for n in shape[1:])
                shape = (shape[0], height, width)
            case tables.Flatten(name):
                modules[name] = nn.Flatten()
            case tables.Unflatten(height, width, channels, name):
                modules[name] = nn.Unflatten(1, (channels, height, width))
                modules[_before(modules, name)] = _linear_to_image(
                    params[_before(modules, name)], (channels, height, width)
                )
                shape = (channels, height, width)
            case tables.Mark(name):
                modules[name] = nn.Identity()
    return nn.ModuleDict(modules), shape


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
    """A linear layer, behind a flattened image of a shape, channels first, or behind a vector."""
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
