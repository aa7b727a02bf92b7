"""A table of layers: `(name, module or function)` rows in order, and the module that runs them."""

import dataclasses
import inspect
from collections.abc import Callable

import flax.linen as nn
from jaxtyping import Array, Float

Row = tuple[str, Callable[..., Array]]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of a table.

    Not a plain tuple: modules in a tuple that is a Flax module's attribute are named by Flax.

    Attributes:
      rows: a name, and the layer of that name: a Flax module, or a function where there are no
        weights. A module whose call takes `train` gets it.
    """

    rows: tuple[Row, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all rows."""
        return tuple(name for name, _ in self.rows)

    def between(self, after: str | None, until: str | None) -> tuple[Row, ...]:
        """The rows after `after` up to and including `until`; None is the first and the last.

        Raises:
          ValueError: if a name is not in the table.
        """
        start = self.names.index(after) + 1 if after is not None else 0
        stop = self.names.index(until) + 1 if until is not None else len(self.rows)
        return self.rows[start:stop]


class Layers(nn.Module):
    """Runs a table, all of it or the rows between two named ones.

    Attributes:
      table: the rows; parameters of each stand under its name.
      frozen: names of rows that run as in evaluation, in training too.
    """

    table: Table
    frozen: tuple[str, ...] = ()

    def setup(self) -> None:
        """Makes the modules of the table this one's own, each under its row's name."""
        for name, layer in self.table.rows:
            if isinstance(layer, nn.Module):
                setattr(self, name, layer)

    def __call__(
        self,
        x: Float[Array, "batch ..."],
        *,
        after: str | None = None,
        until: str | None = None,
        train: bool = False,
    ) -> Float[Array, "batch ..."]:
        """Runs the rows after `after` up to and including `until`; without them, all rows.

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
        for name, layer in self.table.between(after, until):
            if not isinstance(layer, nn.Module):
                x = layer(x)
            elif _takes_train(layer):
                x = getattr(self, name)(x, train=train and name not in self.frozen)
            else:
                x = getattr(self, name)(x)
        return x


def stack(*rows: Row, frozen: tuple[str, ...] = ()) -> Layers:
    """The layers of a table's rows."""
    return Layers(Table(rows), frozen)


def _takes_train(layer: nn.Module) -> bool:
    return "train" in inspect.signature(type(layer).__call__).parameters
