"""Checkpoints: the two latest, the best one and those wanted, each leaf with a checksum."""

import logging
import math
import pathlib
import re
import shutil
import zlib
from collections.abc import Iterator, Sequence
from typing import Any as PyTree

import jax
import ml_collections
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Float

from vae_attn.errors import UserError
from vae_attn.training import distributed, orbax_errors, seeds

_LOG = logging.getLogger("vae_attn")
_MOST_LEAVES = 3  # that a message names


def which_checkpoint(config: ml_collections.ConfigDict) -> str:
    """The one checkpoint that is explained and whose scores count: `best` or `latest`."""
    return "latest" if config.evaluate.checkpoint == "latest" else "best"


class Checkpoints:
    """Saves and restores training states in `workdir/checkpoints`.

    A checkpoint that cannot be read, or whose checksums do not match (orbax reads a flipped
    byte without an error), is named in a warning and the one before it is used. One that is
    intact but of another structure is refused.
    """

    def __init__(self, workdir: pathlib.Path, *, keep_every: int = 0) -> None:
        """Opens the folder; beside the latest and the best, multiples of `keep_every` are kept."""
        orbax_errors.hush()
        self._keep_every = keep_every
        self._directory = workdir.absolute() / "checkpoints"
        self._manager = ocp.CheckpointManager(
            self._directory,
            # A donated buffer must not be written to while a save still reads it.
            options=ocp.CheckpointManagerOptions(enable_async_checkpointing=False),
        )
        self._losses: dict[int, float] = {}

    def save(self, state: PyTree, *, step: int, validation_loss: float) -> None:
        """Saves the state of a step, whole or not at all, and removes those it supersedes.

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
            )
        except (OSError, ValueError) as error:
            if (answer := orbax_errors.refused_by_disk(error)) is None:
                raise
            self.remove_unfinished()
            raise UserError(
                f"cannot save a checkpoint in {self._directory} ({answer}): free some space and "
                "run the same command again; it resumes from the checkpoint before."
            ) from error
        self._losses[step] = validation_loss
        # orbax would do it by a loss that it keeps in memory: not in a resumed run.
        kept = {*self.steps()[-2:], self._best_step(self.steps())}
        if self._keep_every:
            kept |= {step for step in self.steps() if step % self._keep_every == 0}
        for superseded in sorted(set(self.steps()) - kept):
            self._manager.delete(superseded)

    def restore(
        self, template: PyTree, *, which: str = "latest", newest: int | None = None
    ) -> tuple[PyTree, int] | None:
        """The newest (or best) intact checkpoint.

        Args:
          template: a state, or shapes and dtypes of one, of the wanted structure.
          which: `latest`, or `best` by validation loss (the latest where that one is broken).
          newest: step after which checkpoints do not count; None for none.

        Returns:
          The state and its step; None where there is no checkpoint.

        Raises:
          UserError: if there are checkpoints but not one that is intact, or the newest (best) one
            that is does not fit `template`.
        """
        return self._restore(template, which=which, newest=newest)

    def _restore(
        self, template: PyTree | None, *, which: str, newest: int | None
    ) -> tuple[PyTree, int] | None:
        steps = [step for step in self.steps()[::-1] if newest is None or step <= newest]
        if which == "best" and steps:
            best = self._best_step(steps)
            steps = [best, *(step for step in steps if step != best)]
        for step in steps:
            try:
                return self._read(self._kept(step) if template is None else template, step), step
            except (RuntimeError, MemoryError):  # of devices and networks, not of files
                raise
            except Exception as error:  # orbax raises any, `Exception` itself among them
                path = self._directory / str(step)
                if template is not None and (differing := self._differing(template, step)):
                    raise UserError(
                        f"checkpoint {path} is of another model or optimizer, which differs in "
                        f"{listed(differing)}: give another --workdir, or the config and the "
                        "version of vae_attn that it was made with."
                    ) from error
                self._pass_over(step, error)
        if steps:
            raise UserError(
                f"no checkpoint in {self._directory} is intact (steps "
                f"{', '.join(map(str, steps))}; the warnings say why): give another --workdir."
            )
        return None

    def restore_any(self, *, which: str = "latest") -> tuple[dict[str, PyTree], int] | None:
        """As `restore`, of whatever structure was saved, as nested dictionaries."""
        return self._restore(None, which=which, newest=None)

    def each(self, template: PyTree) -> Iterator[tuple[int, float | None, PyTree]]:
        """Every intact checkpoint, ascending: its step, validation loss (None: none) and state."""
        for step in self.steps():
            try:
                restored = self._read(template, step)
            except (RuntimeError, MemoryError):
                raise
            except Exception as error:  # see `restore`
                self._pass_over(step, error)
                continue
            loss = self._validation_loss(step)
            yield step, loss if math.isfinite(loss) else None, restored

    def _pass_over(self, step: int, error: Exception) -> None:
        path, why = self._directory / str(step), orbax_errors.reason(error)
        _LOG.warning("checkpoint %s is broken and passed over: %s", path, why)

    def steps(self) -> list[int]:
        """Steps of the checkpoints that are kept, ascending."""
        return sorted(self._manager.all_steps())

    def discard_after(self, step: int) -> None:
        """Removes newer ones, so that a run resumed from `step` can save its own there."""
        for newer in self.steps():
            if newer > step:
                self._manager.delete(newer)

    def remove_unfinished(self) -> None:
        """Removes what saves that were killed, or had no space, have left."""
        if distributed.is_main():
            for folder in self._directory.glob(f"*{ocp.utils.TMP_DIR_SUFFIX}*"):
                shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def _best_step(self, steps: Sequence[int]) -> int:
        """The one of the least validation loss, the latest of equals."""
        return min(sorted(steps, reverse=True), key=self._validation_loss)

    def _validation_loss(self, step: int) -> float:
        if step not in self._losses:
            self._losses[step] = self._read_validation_loss(step)
        return self._losses[step]

    def _read_validation_loss(self, step: int) -> float:
        try:
            args = ocp.args.Composite(validation=ocp.args.JsonRestore())
            loss = self._manager.restore(step, args=args)["validation"]["loss"]
            return loss if math.isfinite(loss) else math.inf
        except Exception:  # as in `restore`
            return math.inf

    def _read(self, template: PyTree, step: int) -> PyTree:
        """The state of a step; raises anything if it is broken, or not of this structure."""
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
        found, expected = (
            {_plain(name): checksum for name, checksum in checksums.items()}
            for checksums in (_checksums(restored["state"]), restored["checksums"])
        )
        wrong = [name for name in found | expected if found.get(name) != expected.get(name)]
        if wrong:
            raise ValueError(f"the checksums differ of {listed(wrong)}")
        return restored["state"]

    def _kept(self, step: int) -> PyTree:
        """Shapes and dtypes of what was saved at a step."""
        handler = ocp.StandardCheckpointHandler()
        kept = handler.metadata(self._directory / str(step) / "state").tree
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), kept)

    def _differing(self, template: PyTree, step: int) -> list[str]:
        """How an intact checkpoint's leaves are not the template's; empty for a broken one."""
        try:
            kept = self._kept(step)
            differing = differing_leaves(kept, template)
            if differing:
                self._read(kept, step)  # its checksums tell whether it really is that
        except Exception:  # as in `restore`
            return []
        return differing


class SeedCheckpoints:
    """The checkpoints of seeds that are trained together, each in its own folder.

    A seed's checkpoints are those of a run of that seed alone, with a best one of its own.
    """

    def __init__(self, folders: Sequence[pathlib.Path], *, keep_every: int = 0) -> None:
        """One folder per seed; see `Checkpoints`."""
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
            checkpoints.discard_after(newest)
            checkpoints.remove_unfinished()
        return (seeds.join([state for state, _ in found]), newest) if newest else None

    def close(self) -> None:
        """Waits for what is being written."""
        for checkpoints in self._seeds:
            checkpoints.close()


def digest(tree: PyTree) -> str:
    """Eight hexadecimal digits that tell trees of arrays apart."""
    return f"{zlib.crc32(repr(sorted(_checksums(tree).items())).encode()):08x}"


def differing_leaves(there: PyTree, now: PyTree) -> list[str]:
    """How the leaves of one tree differ from another's in name, dtype or shape."""
    before, after = _shapes(there), _shapes(now)
    return [
        f"{name} (there {before.get(name, 'absent')}, now {after.get(name, 'absent')})"
        for name in after | before
        if before.get(name) != after.get(name)
    ]


def _checksums(state: PyTree) -> dict[str, int]:
    return {
        jax.tree_util.keystr(path): zlib.crc32(np.ascontiguousarray(jax.device_get(leaf)))
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def _shapes(tree: PyTree) -> dict[str, str]:
    return {
        _plain(jax.tree_util.keystr(path)): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _plain(name: str) -> str:
    """`params.encoder.bias` of `.params['encoder']['bias']`: the same for classes and for dicts."""
    return ".".join(re.findall(r"[^\[\].']+", name))


def listed(names: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    more = len(names) - _MOST_LEAVES
    shown = ", ".join(names[:_MOST_LEAVES])
    return f"{shown} and {more} more" if more > 0 else shown
