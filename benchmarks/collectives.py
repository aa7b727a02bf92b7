"""What the devices send one another in a training step, counted in the compiled program.

    python -m benchmarks.collectives [--model=NAME ...] [--devices=8]

Compiles for simulated devices of the CPU and runs nothing, so that it needs no accelerator. From
the bytes, and link rates that the makers publish, it computes how long they take at the least.
"""

import argparse
import collections
import functools
import os
import re
from collections.abc import Callable

MODELS = {"mnist": (28, 1), "ucsd_ped1": (100, 1), "mvtec_ad": (256, 3), "factor_vae": (64, 1)}

# Bytes a second that one device sends: to others of its node (NVLink of H100 and H200: 900 GB/s
# both ways together), to other nodes (InfiniBand of 400 Gb/s per GPU), to other chips of a slice
# (TPU v5e: 1,600 Gb/s).
NVLINK, NETWORK, ICI = 450e9, 50e9, 200e9
GPUS_PER_NODE = 8
_SCALES = (8, 32, 256)

_KINDS = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
_INSTRUCTION = re.compile(rf" = (.*?) ({_KINDS})(?:-start)?\(")
_ARRAY = re.compile(r"\b(?:pred|[a-z]+(\d+))\[([\d,]*)\]")


def collectives(program: str) -> list[tuple[str, int]]:
    """Kind and bytes of the results of every collective in the text of a compiled program."""
    found = []
    for line in program.splitlines():
        if match := _INSTRUCTION.search(line):
            arrays = _ARRAY.findall(match[1])
            found.append((match[2], sum(_bytes(bits, shape) for bits, shape in arrays)))
    return found


def _bytes(bits: str, shape: str) -> int:
    elements = 1
    for length in filter(None, shape.split(",")):
        elements *= int(length)
    return elements * int(bits or 8) // 8


def gpu_seconds(size: int, devices: int) -> float:
    """Least seconds of an all-reduce: within each node, and a share per GPU between the nodes."""
    here = min(devices, GPUS_PER_NODE)
    nodes = devices // here
    within = 2 * (here - 1) / here * size / NVLINK
    return within + 2 * (nodes - 1) / nodes * size / here / NETWORK


def tpu_seconds(size: int, devices: int) -> float:
    """Least seconds of an all-reduce over a slice whose chips send on all of their links."""
    return 2 * (devices - 1) / devices * size / ICI


def compiled(run: Callable, *arguments) -> str:
    """The text of the program that an update of `parallel.parallelize` compiles to."""
    return run.lower(*arguments).compile().as_text()


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="benchmarks.collectives", description=__doc__)
    parser.add_argument("--model", action="append", choices=MODELS, help="all, if none is given")
    parser.add_argument("--devices", type=int, default=8, help="simulated")
    arguments = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={arguments.devices}"
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"  # of arithmetic, of which there is none here
    scales = " / ".join(map(str, _SCALES))
    print(
        f"| model | parameters | collectives of a step on {arguments.devices} devices | "
        f"{scales} GPUs | {scales} chips of a TPU |"
    )
    print("|---|---|---|---|---|")
    for name in arguments.model or MODELS:
        print(_row(name, arguments.devices), flush=True)


def _row(name: str, devices: int) -> str:
    import jax
    import numpy as np

    from vae_attn.training import parallel

    start, update, columns = _step(name)
    height, channels = MODELS[name]
    run = parallel.parallelize(update, mode="pmap", batch_size=devices)
    images = np.zeros((devices, height, height, channels), np.uint8)
    indices = np.zeros((devices, *columns), np.int32)
    start, images = parallel.replicate((start, images))
    by_kind = collections.defaultdict(list)
    for kind, size in collectives(compiled(run, start, images, indices)):
        by_kind[kind].append(size)
    counts = [f"{len(of)} {kind}, {sum(of) / 1e6:,.3f} MB" for kind, of in by_kind.items()]
    learnt = [start.params] if not columns else [start.vae.params, start.discriminator]
    count = sum(leaf.size for leaf in jax.tree.leaves(learnt))
    # What is gathered is small, and is left out.
    reduced = sum(by_kind["all-reduce"])
    times = [
        " / ".join(f"{1e3 * seconds(reduced, devices):.2f}" for devices in _SCALES) + " ms"
        for seconds in (gpu_seconds, tpu_seconds)
    ]
    return f"| {name} | {count:,} | {'; '.join(counts)} | {' | '.join(times)} |"


def _step(name: str) -> tuple:
    """The state before the first step, the update, and the columns of a batch's indices."""
    import optax

    from benchmarks.ours import vae_update
    from vae_attn.models import build
    from vae_attn.models.discriminator import Discriminator
    from vae_attn.training import factor, state, steps

    size = MODELS[name][0]
    model_name = "dsprites" if name == "factor_vae" else name
    model = build.build(model_name, image_size=size, latents=32, axis_name=steps.AXIS)
    tx = optax.adam(1e-4)
    if name != "factor_vae":
        return state.create(model=model, tx=tx, seed=0), vae_update(model, tx), ()
    networks = {"model": model, "discriminator": Discriminator(), "tx": tx, "discriminator_tx": tx}
    update = factor.make_factor_update_fn(
        **networks, objective=factor.FactorObjective(), pixels_of=steps.to_unit
    )
    create = functools.partial(factor.create, **networks)
    return create(seed=0), update, (2,)


if __name__ == "__main__":
    main()
