"""Drawn stand-ins for UCSD Ped1 and MVTec-AD, in the official layouts, for tests and demos.

    python -m vae_attn.data.synthetic ucsd_ped1 OUT_DIR [--small] [--seed=0]
    python -m vae_attn.data.synthetic mvtec_ad OUT_DIR [--small] [--seed=0]

Then `--config.data.dir=OUT_DIR`. A marker file in each data set's own folder lets the loaders call
it synthetic. The same seed gives the same bytes. Scores on these pictures say nothing about the
real data sets.
"""

import argparse
import contextlib
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator, Sequence

from vae_attn.data import synthetic_clips, synthetic_surfaces
from vae_attn.data.layout import SYNTHETIC_MARKER
from vae_attn.errors import UserError

_NOTE = "Drawn by vae_attn.data.synthetic; these are not the pictures of the real data set.\n"


def write_ucsd_ped1(out_dir: str | os.PathLike, *, small: bool = False, seed: int = 0) -> None:
    """Draws walkway clips, people walking and carts or cyclists intruding, as `UCSDped1`.

    Args:
      out_dir: a folder that is absent or empty; becomes `data.dir`.
      small: a few short clips, for tests.
      seed: of all that is drawn.

    Raises:
      UserError: the folder is not empty or cannot be written.
    """
    with _written_whole(pathlib.Path(out_dir)) as folder:
        synthetic_clips.write(folder / "UCSDped1", small=small, seed=seed)


def write_mvtec_ad(out_dir: str | os.PathLike, *, small: bool = False, seed: int = 0) -> None:
    """Draws the categories carpet, hazelnut and grid, with holes, scratches and stains.

    Args:
      out_dir: a folder that is absent or empty; becomes `data.dir`.
      small: a few small images, for tests.
      seed: of all that is drawn.

    Raises:
      UserError: the folder is not empty or cannot be written.
    """
    with _written_whole(pathlib.Path(out_dir)) as folder:
        synthetic_surfaces.write(folder, small=small, seed=seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code, 2 for bad input."""
    parser = argparse.ArgumentParser(
        prog="python -m vae_attn.data.synthetic",
        description="Draws a synthetic stand-in for a data set, in its official layout.",
    )
    parser.add_argument("data_set", choices=["ucsd_ped1", "mvtec_ad"])
    parser.add_argument("out_dir", metavar="OUT_DIR", help="a folder that is absent or empty")
    parser.add_argument("--small", action="store_true", help="few and small, for tests")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default 0)")
    options = parser.parse_args(arguments)
    write = write_ucsd_ped1 if options.data_set == "ucsd_ped1" else write_mvtec_ad
    try:
        write(options.out_dir, small=options.small, seed=options.seed)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"wrote {options.out_dir}; use it with --config.data.dir={options.out_dir}")
    return 0


@contextlib.contextmanager
def _written_whole(out_dir: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a temporary folder beside `out_dir` that takes its name once all is drawn."""
    out_dir = out_dir.absolute()
    try:
        if out_dir.exists() and (not out_dir.is_dir() or any(out_dir.iterdir())):
            raise UserError(f"{out_dir}: is not an empty folder; choose a new name")
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out_dir.parent, prefix=".drawing-") as temporary:
            folder = pathlib.Path(temporary) / "data"
            folder.mkdir()
            yield folder
            # In each data set's own folder too, which may be copied without its parent.
            for place in (folder, *folder.iterdir()):
                (place / SYNTHETIC_MARKER).write_text(_NOTE, encoding="utf-8")
            os.replace(folder, out_dir)
    except OSError as error:
        raise UserError(
            f"{out_dir}: cannot be written ({error.strerror}); choose another folder"
        ) from error


if __name__ == "__main__":
    sys.exit(main())
