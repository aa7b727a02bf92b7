"""A run's folder: its config and its images, kept and compared, and its lock.

Two commands never work in it at once, as they would overwrite each other's checkpoints and
figures, and a run never continues with another config or on other images.
"""

import contextlib
import dataclasses
import json
import logging
import os
import pathlib
import socket

import filelock
import ml_collections

from vae_attn import whole_files, workdir_scores
from vae_attn.config import default_config, flat
from vae_attn.data.dataset import AnomalyData
from vae_attn.data.factor_grid import FactorData
from vae_attn.data.fingerprint import fingerprint
from vae_attn.data.image_files import ALL_LEVELS
from vae_attn.errors import UserError, shown
from vae_attn.training import distributed, seeds

_LOG = logging.getLogger("vae_attn")

CONFIG = "config.json"
# In the folder of a group of runs: another name, because that folder is not a run itself.
GROUP_CONFIG = "group.json"
DATA = "data.json"  # in the workdir, and in the folder of each of several seeds

# Keys that may differ between two calls on one workdir: they change no parameter of the model.
_FREE_KEYS = (
    "attention.",
    "evaluate.",
    "learned.",
    "parallel.",
    "report.",
    "data.dir",
    "data.cache_dir",
    "data.resident",
    "train.log_every",
    "train.steps_at_once",
    "train.keep_every",
)
# Keys that may differ as long as the run is not shorter than what was trained already.
_LENGTH_KEYS = ("train.steps", "train.epochs")


def default(config_file: str, data_dir: str = "") -> pathlib.Path:
    """The folder of a run for which none is given.

    Args:
      config_file: such as `configs/mnist.py:3`, which gives `runs/mnist_3`.
      data_dir: of the images, where they are others than the config file's: `photos` of
        `configs/folder.py` gives `runs/folder_photos`.
    """
    path, _, variant = config_file.partition(":")
    data_name = os.path.basename(os.path.abspath(data_dir)) if data_dir else ""
    parts = [pathlib.Path(path).stem, variant.replace(",", "_"), data_name]
    return pathlib.Path("runs") / "_".join(filter(None, parts))


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """What distinguishes the data of one run from those of another.

    Attributes:
      fingerprint: of the training images and the split; what is compared.
      train: images to train on.
      validation: held-out images.
      name: of the data.
      dir: `data.dir`, where the images were.
      levels: of files with more than 8 bits, what became 0 and 255 (`AnomalyData.levels`): for
        further images of the same kind.
    """

    fingerprint: str
    train: int
    validation: int
    name: str
    dir: str
    levels: tuple[int, int] = ALL_LEVELS

    @classmethod
    def of(cls, data: AnomalyData | FactorData, data_dir: str) -> "DataRecord":
        """The record of loaded data."""
        sizes = len(data.train), len(data.validation)
        levels = getattr(data, "levels", ALL_LEVELS)  # a grid of factors has no files
        return cls(fingerprint(data), *sizes, data.name, data_dir, levels)

    @classmethod
    def read(cls, workdir: pathlib.Path) -> "DataRecord":
        """The record of a run.

        Raises:
          UserError: if there is none, or it cannot be read.
        """
        path = workdir / DATA
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            low, high = kept.pop("levels", ALL_LEVELS)
            record = cls(**kept, levels=(int(low), int(high)))
            str(record)
        except FileNotFoundError as error:
            raise UserError(
                f"{workdir} holds a run that does not say on which images it learned (it has no "
                f"{DATA}): give another --workdir."
            ) from error
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"{path} cannot be read ({shown(reason)}): restore it, or give another --workdir."
            ) from error
        return record

    def require_same(self, workdir: pathlib.Path) -> None:
        """Refuses a folder whose run learned from other images.

        Args:
          workdir: of a run with checkpoints.

        Raises:
          UserError: if it did, or does not say from which.
        """
        found = self.read(workdir)
        if found.fingerprint != self.fingerprint:
            raise UserError(
                f"{workdir} holds a run on other images: there {found}, now {self}. Give another "
                "--workdir, or the images of the run that is there; to start from its weights, "
                f"give another --workdir and --config.train.init_from={workdir}."
            )

    def keep(self, workdir: pathlib.Path) -> None:
        """Writes the record into the folder of a run; of several processes the main one does."""
        if not distributed.is_main():
            return
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        with whole_files.writing(workdir / DATA) as temporary:
            temporary.write_text(text, encoding="utf-8")

    def __str__(self) -> str:
        """For messages."""
        return (
            f"{self.train} to train on and {self.validation} held out of {shown(self.name)} "
            f"(data.dir={shown(self.dir)})"
        )


class WorkdirLock:
    """Held by a command, within `with`, in the folders that it writes.

    It is the kernel's lock on `.lock` in the folder, which ends with the process however that
    ends; the file stays, and means nothing by itself. Of several processes the main one holds it
    for all.
    """

    def __init__(self) -> None:
        self._locks: dict[pathlib.Path, filelock.BaseFileLock] = {}

    def __enter__(self) -> "WorkdirLock":
        """Holds nothing yet."""
        return self

    def __exit__(self, *_: object) -> None:
        """Releases all folders."""
        for lock in self._locks.values():
            lock.release(force=True)
        self._locks.clear()

    def take(self, *folders: pathlib.Path) -> None:
        """Takes folders, which are created if missing, unless it holds them already.

        A file system without locks only causes a warning. A folder that cannot be created is left
        for whoever writes there next to report.

        Raises:
          UserError: in all processes, if another command holds one of them; nothing in it has
            been changed.
        """
        refused = ""
        for folder in folders if distributed.is_main() else ():
            if folder not in self._locks and not refused:
                refused = self._take(folder)
        # The main process' sentence is printed by it alone; the others only have to end too.
        if distributed.any_process(bool(refused)):
            raise UserError(refused or "another command works in this workdir; see process 0.")

    def _take(self, folder: pathlib.Path) -> str:
        """Why not, in a sentence; nothing if it is taken, or cannot be locked."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            return ""
        # The soft lock that would stand in where the kernel has none outlives a killed process.
        lock = filelock.FileLock(folder / ".lock", fallback_to_soft=False)
        # Not in the lock's own file, which some versions of filelock empty on a mere attempt.
        holder = folder / ".holder"
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            return (
                f"--workdir={folder} is in use by {_read_holder(holder)}: wait for it or end it, "
                "or give another --workdir."
            )
        except (OSError, NotImplementedError) as error:
            _LOG.warning(
                "%s cannot be locked (%s): make sure that one command at a time uses it.",
                folder,
                error,
            )
            return ""
        self._locks[folder] = lock
        with contextlib.suppress(OSError):  # a full disk, which the next file will report
            text = f"process {os.getpid()} on {socket.gethostname()}"
            holder.write_text(text, encoding="utf-8")
        return ""


def _read_holder(path: pathlib.Path) -> str:
    with contextlib.suppress(OSError):
        return shown(path.read_text(encoding="utf-8", errors="replace")) or "another process"
    return "another process"


def begin(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    mode: str,
    lock: WorkdirLock,
    total_steps: int,
    data: DataRecord,
) -> None:
    """Takes a run's folders, one for each of several seeds; keeps or compares config and data.

    Args:
      config: the run's.
      workdir: created if missing, unless `mode` needs a run that exists.
      mode: `evaluate` and `explain` need one; the others train it, longer if the config says so.
      lock: takes the folders.
      total_steps: of the whole training, see `loop.total_steps`.
      data: what the run learns from; a folder without a checkpoint gets it.

    Raises:
      UserError: if there is no run where one is needed, another command works in the folders, they
        hold a run with another config or on other images, or `train.init_from` names no run of
        this kind.
    """
    trains = mode not in ("evaluate", "explain")
    if not trains:
        require_run(workdir)  # before the lock, which makes the folder
    elif config.train.init_from and not newest_step(workdir):
        _require_source(config, workdir)
    of_seeds = seeds.runs(config, workdir)
    lock.take(workdir, *(folder for _, folder in of_seeds))
    folders = [(config, workdir), *(of_seeds if config.num_seeds > 1 else ())]
    begun = {folder for _, folder in folders if _has_begun(folder)}  # before anything is written
    for one, folder in folders:
        if folder in begun:
            _require_same_keys(one, folder)
            data.require_same(folder)
    for one, folder in folders:
        keep_or_compare(one, folder, trains=trains, total_steps=total_steps)
        if folder not in begun:
            data.keep(folder)
            if distributed.is_main():
                workdir_scores.forget(folder)  # of an earlier run


def keep_or_compare(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    trains: bool = True,
    total_steps: int | None = None,
) -> None:
    """Writes `config.json` into a new workdir; refuses a workdir made with another config.

    A workdir without a checkpoint counts as new: a run that ended before its first one, because
    its weights were missing, say, may come again with a config that corrects it.

    Args:
      config: of this call.
      workdir: created if missing.
      trains: whether this call trains; its `train.steps` and `train.epochs` are then kept.
      total_steps: see `compare`.

    Raises:
      UserError: if the workdir cannot be written, or was made with other values of keys that
        change the training; the message lists them.
    """
    if _has_begun(workdir):
        compare(config, workdir, total_steps=total_steps)
        kept = read(workdir)
        if not trains or all(_value(kept, key) == _value(config, key) for key in _LENGTH_KEYS):
            return
        kept.train.steps, kept.train.epochs = config.train.steps, config.train.epochs
        config = kept
    _keep(config, workdir, CONFIG)


def keep_group(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Writes the config of a group of runs into their common folder, for `read`."""
    _keep(config, workdir, GROUP_CONFIG)


def _keep(config: ml_collections.ConfigDict, workdir: pathlib.Path, name: str) -> None:
    if not distributed.is_main():
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        text = json.dumps(json.loads(config.to_json()), indent=2, sort_keys=True) + "\n"
        with whole_files.writing(workdir / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} cannot be written ({error.strerror}): choose another folder."
        ) from error


def read(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a run, or of a group of runs; keys that it lacks have their defaults.

    Raises:
      UserError: if there is none, or it cannot be read.
    """
    path = config_path(workdir)
    if path is None:
        require_run(workdir)
    config = default_config()
    try:
        config.update(json.loads(path.read_text(encoding="utf-8")))
        if None in flat(json.loads(config.to_json())).values():
            raise ValueError("a key is null")
    except (
        *(OSError, ValueError, TypeError, LookupError),
        *(AttributeError, RecursionError, ArithmeticError),
    ) as error:
        raise unreadable(workdir, error) from error
    return config


def config_path(workdir: pathlib.Path) -> pathlib.Path | None:
    """The file with the config of a run, or of a group of runs; None where there is none."""
    paths = [workdir / CONFIG, workdir / GROUP_CONFIG]
    return next((path for path in paths if path.exists()), None)


def unreadable(workdir: pathlib.Path, error: Exception) -> UserError:
    """The sentence that says why the config of a run cannot be read or used."""
    reason = (str(error) or type(error).__name__).splitlines()[0]
    return UserError(
        f"{config_path(workdir)} cannot be read ({shown(reason)}): repair it, or give another "
        "--workdir."
    )


def require_run(workdir: pathlib.Path) -> None:
    """Refuses a workdir without a run."""
    if not (workdir / CONFIG).exists():
        raise UserError(f"{workdir} holds no run: train it first (--mode=train).")


def newest_step(workdir: pathlib.Path) -> int:
    """The step of a run's newest checkpoint, of any of its seeds; 0 without one."""
    kept = ("checkpoints/[0-9]*", "seed_*/checkpoints/[0-9]*")  # of one seed, and of several
    names = [path.name for pattern in kept for path in workdir.glob(pattern)]
    return max((int(name) for name in names if name.isdecimal() and len(name) < 20), default=0)


def _has_begun(workdir: pathlib.Path) -> bool:
    """Whether a folder holds a run with a checkpoint."""
    return (workdir / CONFIG).exists() and newest_step(workdir) > 0


def compare(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, total_steps: int | None = None
) -> None:
    """Refuses a workdir that was made with another config.

    Args:
      config: of this call.
      workdir: the run's.
      total_steps: of the whole training, where the number of images, and so of steps, is known.

    Raises:
      UserError: if keys that change the training differ, or it already took more steps.
    """
    _require_same_keys(config, workdir)
    _require_no_shorter(config, workdir, total_steps)


def _require_same_keys(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    before, now = (flat(json.loads(one.to_json())) for one in (read(workdir), config))
    differing = [
        f"{shown(key)} (there {shown(repr(before.get(key, 'absent')))}, "
        f"now {shown(repr(now.get(key, 'absent')))})"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key) and not key.startswith((*_FREE_KEYS, *_LENGTH_KEYS))
    ]
    if differing:
        raise UserError(
            f"{workdir} holds a run with another config: {', '.join(differing)}. Give another "
            "--workdir, or the values of the run that is there; to start from its weights, give "
            f"another --workdir and --config.train.init_from={workdir}."
        )


def _require_no_shorter(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, total_steps: int | None
) -> None:
    done = newest_step(workdir)
    total = config.train.steps if total_steps is None else total_steps  # 0: unknown
    if 0 < total < done:
        key = "steps" if config.train.steps else "epochs"
        raise UserError(
            f"{workdir} holds a run of {done} steps, and --config.train.{key}={config.train[key]} "
            f"asks for {total}: give at least as many, or another --workdir."
        )


def _require_source(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Refuses a `train.init_from` that is no run whose weights could be used."""
    source = pathlib.Path(config.train.init_from)
    given = f"--config.train.init_from={shown(str(source))}"
    if not (source / CONFIG).exists():
        raise UserError(f"{given} holds no run: give the folder of one, as its --workdir was.")
    if source.resolve() == workdir.resolve():
        raise UserError(f"{given} is the --workdir itself: give another --workdir.")
    kept = read(source)
    if kept.num_seeds > 1:
        raise UserError(f"{given} holds several seeds: give the folder of one, such as seed_0.")
    if bool(kept.model.pretrained) != bool(config.model.pretrained):
        raise UserError(
            f"{given} has --config.model.pretrained={shown(kept.model.pretrained)!r}, and this run "
            f"{shown(config.model.pretrained)!r}: give both one or neither, since the images are "
            "normalised accordingly."
        )


def _value(config: ml_collections.ConfigDict, key: str) -> object:
    section, _, name = key.partition(".")
    return config[section][name]
