"""The trunk, all of an encoder before its flatten: weights put into it, updates kept out."""

from typing import Any as PyTree

import jax
import ml_collections
import optax

from vae_attn.data import cache
from vae_attn.errors import UserError
from vae_attn.models import pretrained
from vae_attn.training.state import TrainState


def load_pretrained(config: ml_collections.ConfigDict) -> pretrained.Variables:
    """The ResNet18 weights that `model.pretrained` names, downloaded where it says so.

    Raises:
      UserError: they cannot be had, or do not fit; see `pretrained.load_resnet18`.
    """
    path = config.model.pretrained
    if path == "download":
        try:
            folder = config.data.cache_dir or cache.default_dir()
        except RuntimeError as error:
            problem = f"no home folder for downloaded weights ({error}): set data.cache_dir."
            raise UserError(problem) from error
        path = pretrained.download_resnet18(folder)
    return pretrained.load_resnet18(path)


def put(state: TrainState, variables: pretrained.Variables) -> TrainState:
    """The state with the trunk's parameters and running statistics replaced.

    Args:
      state: of a model whose encoder has these rows.
      variables: `params` and `batch_stats` of the trunk, as from `pretrained.load_resnet18`.

    Returns:
      The state; what follows the trunk, and the decoder, stay as they are.
    """

    def replaced(tree: PyTree, new: PyTree) -> PyTree:
        return {**tree, "encoder": {**tree["encoder"], **jax.device_put(new)}}

    return state.replace(
        params=replaced(state.params, variables["params"]),
        batch_stats=replaced(state.batch_stats, variables["batch_stats"]),
    )


def freeze(
    tx: optax.GradientTransformation, layers: tuple[str, ...]
) -> optax.GradientTransformation:
    """The optimiser without updates of the trunk's parameters, of which it keeps no moments.

    Args:
      tx: the optimiser.
      layers: names of the encoder's rows whose parameters stay.
    """

    def labels(params: PyTree) -> PyTree:
        def label(path: tuple, _: PyTree) -> str:
            module, row = path[0].key, path[1].key
            return "frozen" if module == "encoder" and row in layers else "trained"

        return jax.tree_util.tree_map_with_path(label, params)

    return optax.multi_transform({"trained": tx, "frozen": optax.set_to_zero()}, labels)
