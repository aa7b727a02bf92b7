"""Whether a model does what the package asks of it: shapes alone are computed, and no values."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from vae_attn.errors import UserError, shown
from vae_attn.models.adaptor import Adaptor
from vae_attn.models.model import Model

_BATCH = 2
_COLLECTIONS = ("params", "batch_stats")

NamedLayers = Sequence[tuple[str, Any]]  # keys of the config, and the layers that they name


def require_layers(model: Model, name: str, named: NamedLayers) -> None:
    """Checks names of layers against the model's own, where it lists them.

    Args:
      model: the model.
      name: `config.model.name`.
      named: see `NamedLayers`.

    Raises:
      UserError: for one that the model does not have; the message lists those it has.
    """
    known = model.layers
    for key, layer in named:
        if known and layer not in known:
            raise UserError(
                f"--config.{key}={shown(repr(layer))} must be one of the layers of "
                f"model.name={shown(name)}: {', '.join(known)}."
            )


def check(model: Model, name: str, named: NamedLayers, *, batch_stats: bool = True) -> None:
    """Checks a model of the user's own: methods, shapes, variables; see `models.build`.

    Args:
      model: the model.
      name: `config.model.name`.
      named: see `NamedLayers`; the first is the one at which the model encodes.
      batch_stats: whether it may have batch statistics.

    Raises:
      UserError: in one sentence, for the first thing that is wrong.
    """
    of = f"model.name={shown(repr(name))}"
    images = jax.ShapeDtypeStruct((_BATCH, *model.image_shape), jnp.float32)
    codes = jax.ShapeDtypeStruct((_BATCH, model.latents), jnp.float32)

    def fresh(x: Any, *args: Any, method: str) -> Any:
        def run(x: Any) -> Any:
            key, own = jax.random.key(0), _own(method)
            return model.init_with_output(key, x, *args, train=True, method=own)[0]

        return jax.eval_shape(run, x)

    _check_encoder(model, of, images, named[0], fresh)
    logits = _run(of, "decode(z, train=True)", lambda: fresh(codes, method="decode"))
    if _shape(logits) != images.shape:
        raise UserError(
            f"{of}: decode must return logits of the images' shape {_batched(model.image_shape)}, "
            f"and returned {_described(logits)}."
        )

    def initialize(x: Any, z: Any) -> Any:
        return model.init(jax.random.key(0), x, z, train=True)

    variables = _run(of, "initialisation", lambda: jax.eval_shape(initialize, images, codes))
    for collection in variables:
        if collection not in _COLLECTIONS:
            raise UserError(
                f"{of}: its variables have the collection {shown(repr(collection))}, and may have "
                "params and batch_stats alone."
            )
    if "batch_stats" in variables and not batch_stats:
        raise UserError(
            f"{of} has batch normalisation, which factor.gamma and factor.ad_weight cannot take: "
            "set both to 0, or choose a model without."
        )

    def applied(x: Any, *args: Any, method: str) -> Any:
        def run(variables: Any, x: Any) -> Any:
            return model.apply(variables, x, *args, train=False, method=_own(method))

        return jax.eval_shape(run, variables, x)

    for one in dict.fromkeys(named):
        _check_encoder(model, of, images, one, applied)
    _run(of, "decode(z, train=False)", lambda: applied(codes, method="decode"))


def _check_encoder(
    model: Model, of: str, images: Any, named: tuple[str, Any], run: Callable[..., Any]
) -> None:
    """Shapes of `features` and `head` at one layer; `run` calls one of them."""
    key, layer = named
    whose = f"{key}={shown(repr(layer))}"
    features = _run(of, f"features at {whose}", lambda: run(images, layer, method="features"))
    shape = _shape(features)
    if shape is None or len(shape) != 4 or shape[0] != _BATCH:
        raise UserError(
            f"{of}: features at {whose} must return (batch, height, width, channels), as maps are "
            f"drawn from them, and returned {_described(features)}."
        )
    pair = _run(of, f"head at {whose}", lambda: run(features, layer, method="head"))
    if not isinstance(pair, tuple | list) or len(pair) != 2:
        raise UserError(
            f"{of}: head at {whose} must return two arrays, mean and logvar, and returned "
            f"{_described(pair)}."
        )
    for part, value in zip(("mean", "logvar"), pair, strict=True):
        if _shape(value) != (_BATCH, model.latents):
            raise UserError(
                f"{of}: head at {whose} must return {part} of the shape "
                f"{_batched((model.latents,))}, and returned {_described(value)}."
            )


def reason(error: Exception) -> str:
    """The kind of an error and its first line."""
    first = next((line for line in str(error).splitlines() if line.strip()), "")
    return shown(f"{type(error).__name__}: {first}" if first else type(error).__name__)


def _own(method: str) -> Callable[..., Any]:
    """The user's own method, without what an adaptor's would say of its shapes."""

    def call(model: Any, *args: Any, train: bool) -> Any:
        module = model.module if isinstance(model, Adaptor) else model
        return getattr(module, method)(*args, train=train)

    return call


def _run(of: str, what: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except Exception as error:  # it is anyone's code
        raise UserError(
            f"{of}: {what} raised {reason(error)}; see vae_attn/models/build.py for what a model "
            "has to do."
        ) from error


def _shape(value: Any) -> tuple[int, ...] | None:
    return tuple(value.shape) if hasattr(value, "shape") else None


def _batched(shape: tuple[int, ...]) -> str:
    return f"({', '.join(['batch', *map(str, shape)])})"


def _described(value: Any) -> str:
    """A shape as the user thinks of it, with `batch` in the first place."""
    shape = _shape(value)
    if shape is None:
        held = f" of {len(value)}" if isinstance(value, tuple | list) else ""
        return f"a {type(value).__name__}{held}"
    return _batched(shape[1:]) if shape[:1] == (_BATCH,) else str(shape)
