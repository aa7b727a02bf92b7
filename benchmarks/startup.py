"""From a cold start: importing, and the first training step.

python -m benchmarks.startup ours|torch      makes that step in this process
"""

import functools
import os
import subprocess
import sys
import tempfile

from benchmarks.case import OURS, Case, Side

# JAX's own setting, which users may make too: compiled programs are kept in that folder.
_CACHE = "JAX_COMPILATION_CACHE_DIR"
_KEEP_ALL = {
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
}


def cases() -> list[Case]:
    """All of this file."""

    def case(name: str, what: str, sides: dict) -> Case:
        return Case(name, what, 1, "starts", sides, rounds=3, warm_up=False)

    first = functools.partial(functools.partial, _command, "-m", "benchmarks.startup")
    return [
        case(
            "import",
            "import of the attention functions, in a new process",
            {
                OURS: functools.partial(_command, "-c", "import vae_attn.attention"),
                "torch": functools.partial(_command, "-c", "import torch"),
            },
        ),
        case(
            "first_step",
            "first training step, mnist, batch 128 (torch without log variance), in a new process",
            {OURS: first("ours"), f"ours, {_CACHE} set": _cached, "torch": first("torch")},
        ),
    ]


def _command(*arguments: str, environment: dict[str, str] | None = None) -> Side:
    def call() -> None:
        everything = os.environ | (environment or {})
        subprocess.run([sys.executable, *arguments], check=True, env=everything)

    return Side(call, {})


def _cached() -> Side:
    environment = _KEEP_ALL | {_CACHE: tempfile.mkdtemp()}
    side = _command("-m", "benchmarks.startup", "ours", environment=environment)
    side.call()
    return side


def _first_step(name: str) -> None:
    """Imports nothing of the other side."""
    if name == "ours":
        from benchmarks.growth import train

        train("mnist", 28, 128, 32).call()
        return
    import torch
    from torch import nn

    vae = nn.Sequential(
        *(nn.Conv2d(1, 64, 4, 2, 1), nn.ReLU(), nn.Conv2d(64, 128, 4, 2, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6272, 1024), nn.ReLU(), nn.Linear(1024, 32)),
        *(nn.Linear(32, 1024), nn.ReLU(), nn.Linear(1024, 6272), nn.ReLU()),
        *(nn.Unflatten(1, (128, 7, 7)), nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.ReLU()),
        nn.ConvTranspose2d(64, 1, 4, 2, 1),
    )
    optimizer = torch.optim.Adam(vae.parameters(), lr=1e-3)
    x = torch.rand(128, 1, 28, 28)
    loss = nn.functional.binary_cross_entropy_with_logits(vae(x), x, reduction="sum") / len(x)
    loss.backward()
    optimizer.step()
    loss.item()


if __name__ == "__main__":
    _first_step(sys.argv[1])
