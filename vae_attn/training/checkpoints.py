"""Checkpoints: the two latest, the best one and those wanted, each leaf with a checksum."""

import logging
import math
import pathlib
import zlib
from collections.abc import Iterator, Sequence

import jax
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Float, PyTree
from orbax.checkpoint import checkpoint_managers

from vae_attn.errors import UserError
from vae_attn.training import seeds

_LOG = logging.getLogger("vae_attn")


class Checkpoints:
    """Saves and restores training states in `workdir/checkpoints`.

    A checkpoint that cannot be read, or whose checksums do not match (orbax reads a flipped
    byte without an error), is named in a warning and the one before it is used.
    """

    def __init__(self, workdir: pathlib.Path, *, keep_every: int = 0) -> None:
        """Opens the folder; beside the latest and the best, multiples of `keep_every` are kept."""
        kept = [
            checkpoint_managers.LatestN(2),
            checkpoint_managers.BestN(
                get_metric_fn=lambda metrics: metrics["validation_loss"], reverse=True, n=1
            ),
        ]
        if keep_every:
            kept.append(checkpoint_managers.EveryNSteps(keep_every))
        self._directory = workdir.absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=checkpoint_managers.AnyPreservationPolicy(kept),
                # A donated buffer must not be written to while a save still reads it.
                enable_async_checkpointing=False,
            ),
        )

    def save(self, state: PyTree, *, step: int, validation_loss: float) -> None:
        """Saves the state of a step, whole or not at all.

        Raises:
          UserError: if the disk refuses it.
        """
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    checksums=ocp.args.JsonSave(_checksums(state)),
                    validation=ocp.args.JsonSave({"loss": validation_loss}),
                ),
                metrics={"validation_loss": validation_loss},
            )
        except OSError as error:
            raise UserError(
                f"cannot save a checkpoint in {self._directory} ({error}): free some space and "
                "run the same command again; it goes on from the checkpoint before."
            ) from error

    def restore(
        self, template: PyTree, *, which: str = "latest", newest: int | None = None
    ) -> tuple[PyTree, int] | None:
        """The newest (or best) intact checkpoint.

        Args:
          template: a state, or shapes and dtypes of one, of the wanted structure.
          which: `latest`, or `best` by validation loss (the latest where that one is broken).
          newest: step behind which checkpoints do not count; None for none.

        Returns:
          The state and its step; None where there is no checkpoint.

        Raises:
          UserError: if there are checkpoints but not one that is intact and fits `template`.
        """
        steps = [step for step in self.steps()[::-1] if newest is None or step <= newest]
        if which == "best" and steps:
            best = min(steps, key=self._validation_loss)
            steps = [best, *(step for step in steps if step != best)]
        for step in steps:
            try:
                return self._restore_step(template, step), step
            except (ValueError, OSError, KeyError) as error:
                path = self._directory / str(step)
                _LOG.warning("checkpoint %s is broken and passed over: %s", path, error)
        if steps:
            raise UserError(
                f"no checkpoint in {self._directory} is intact and fits this config (steps "
                f"{', '.join(map(str, steps))}; the warnings say why): give another --workdir."
            )
        return None

    def each(self, template: PyTree) -> Iterator[tuple[int, float | None, PyTree]]:
        """Every intact checkpoint, ascending: its step, validation loss (None: none) and state."""
        for step in self.steps():
            try:
                restored = self._restore_step(template, step)
            except (ValueError, OSError, KeyError) as error:
                path = self._directory / str(step)
                _LOG.warning("checkpoint %s is broken and passed over: %s", path, error)
                continue
            loss = self._validation_loss(step)
            yield step, loss if math.isfinite(loss) else None, restored

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are kept, ascending."""
        return sorted(self._manager.all_steps())

    def discard_behind(self, step: int) -> None:
        """Removes newer ones, so that a run that goes on from `step` can save its own there."""
        for newer in self.steps():
            if newer > step:
                self._manager.delete(newer)

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _validation_loss(self, step: int) -> float:
        try:
            args = ocp.args.Composite(validation=ocp.args.JsonRestore())
            loss = self._manager.restore(step, args=args)["validation"]["loss"]
            return loss if math.isfinite(loss) else math.inf
        except (ValueError, OSError, KeyError):
            return math.inf

    def _restore_step(self, template: PyTree, step: int) -> PyTree:
        # Where the template says nothing, one device here, whatever it was saved from.
        here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=getattr(x, "sharding", None) or here
            ),
            template,
        )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(shapes), checksums=ocp.args.JsonRestore()
            ),
        )
        found, expected = _checksums(restored["state"]), restored["checksums"]
        wrong = sorted(name for name in found | expected if found.get(name) != expected.get(name))
        if wrong:
            raise ValueError(f"the checksums differ of {', '.join(wrong[:3])}")
        return restored["state"]


class SeedCheckpoints:
    """The checkpoints of seeds that are trained together, each in its own folder.

    A seed's checkpoints are those of a run of that seed alone, with a best one of its own.
    """

    def __init__(self, folders: Sequence[pathlib.Path], *, keep_every: int = 0) -> None:
        """One folder a seed; see `Checkpoints`."""
        self._folders = folders
        self._seeds = [Checkpoints(folder, keep_every=keep_every) for folder in folders]

    def save(
        self, state: PyTree, *, step: int, validation_losses: Float[np.ndarray, "seeds"]
    ) -> None:
        """Saves all seeds' state of a step; see `Checkpoints.save`."""
        states = seeds.split(state, len(self._seeds))
        for checkpoints, one, loss in zip(self._seeds, states, validation_losses, strict=True):
            checkpoints.save(one, step=step, validation_loss=float(loss))

    def restore(self, template: PyTree) -> tuple[PyTree, int] | None:
        """All seeds at the newest step of which each has an intact checkpoint.

        What is newer is removed, so that the run can save its own in its place.

        Args:
          template: a state of all seeds.

        Returns:
          The state and its step; None where training begins.

        Raises:
          UserError: if there are checkpoints, but of no step that all seeds share.
        """
        templates = seeds.split(template, len(self._seeds))
        newest = None
        while True:
            found = [
                checkpoints.restore(one, newest=newest)
                for checkpoints, one in zip(self._seeds, templates, strict=True)
            ]
            steps = {0 if one is None else one[1] for one in found}
            newest = min(steps)
            if len(steps) == 1 or not newest:
                break
        # A run that was killed in its first save begins anew; what it saved is soon saved again.
        if not newest and any(len(checkpoints.steps()) > 1 for checkpoints in self._seeds):
            raise UserError(
                f"the seeds in {self._folders[0].parent} have no intact checkpoint of the same "
                "step: give another --workdir."
            )
        for checkpoints in self._seeds:
            checkpoints.discard_behind(newest)
        return (seeds.join([state for state, _ in found]), newest) if newest else None

    def close(self) -> None:
        """Waits for what is being written."""
        for checkpoints in self._seeds:
            checkpoints.close()


def digest(tree: PyTree) -> str:
    """Eight hexadecimal digits that tell trees of arrays apart."""
    return f"{zlib.crc32(repr(sorted(_checksums(tree).items())).encode()):08x}"


def _checksums(state: PyTree) -> dict[str, int]:
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(jax.device_get(leaf)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }
