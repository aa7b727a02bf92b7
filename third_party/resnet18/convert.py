"""Turns torchvision's ResNet18 file into safetensors; the one place that reads a `.pth`.

    python -m pip install torch safetensors
    python third_party/resnet18/convert.py resnet18-f37072fd.pth resnet18.safetensors

`weights_only=True` lets torch load tensors and nothing else that a pickle may name. Names and
values stay as they are; `vae_attn.models.pretrained` checks them.
"""

import sys

import torch
from safetensors.torch import save_file


def main(source: str, target: str) -> None:
    """Reads the state dict in `source` and writes it to `target`."""
    state = torch.load(source, map_location="cpu", weights_only=True)
    save_file({name: value.detach().contiguous() for name, value in state.items()}, target)


if __name__ == "__main__":
    main(*sys.argv[1:])
