"""The images of a run, kept in its folder and compared: it never continues on others."""

import dataclasses
import json
import pathlib

from vae_attn import whole_files
from vae_attn.data.dataset import AnomalyData
from vae_attn.data.factor_grid import FactorData
from vae_attn.data.fingerprint import fingerprint
from vae_attn.data.image_files import ALL_LEVELS
from vae_attn.errors import UserError, shown
from vae_attn.training import distributed

DATA = "data.json"  # in the workdir, and in the folder of each of several seeds


@dataclasses.dataclass(frozen=True)
class DataRecord:
    """What tells the data of one run from those of another.

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
