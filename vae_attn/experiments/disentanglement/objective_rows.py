"""What is known of the models of a comparison, one line of a file for each."""

import json
import pathlib
from collections.abc import Sequence

from vae_attn import whole_files
from vae_attn.errors import UserError
from vae_attn.experiments.disentanglement.objective_scoring import About, Scores


def read(path: pathlib.Path) -> list[tuple[About, dict[str, float]]]:
    """All rows of a file, none where there is no file; raises UserError for a broken one."""
    if not path.exists():
        return []
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [(About(row["objective"], row["seed"], row["step"]), row["values"]) for row in rows]
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): restore it, or give another --workdir."
        ) from error


def append(path: pathlib.Path, about: About, values: Scores) -> None:
    """Adds a row, in place of that of the same model which a killed call may have written."""
    rows = [row for row in read(path) if row[0] != about]
    rows.append((about, values))
    with whole_files.writing(path) as temporary:
        lines = [json.dumps(row._asdict() | {"values": kept}) for row, kept in rows]
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def joined(paths: Sequence[pathlib.Path]) -> dict[About, Scores]:
    """The rows of several files; raises UserError where two have the same model."""
    found: dict[About, Scores] = {}
    path_of: dict[About, pathlib.Path] = {}
    for path in paths:
        rows = dict(read(path))
        for about in sorted(rows.keys() & found.keys()):
            raise UserError(
                f"{path} has {about.objective}, seed {about.seed}, step {about.step}, as "
                f"{path_of[about]} has: give only one of the two."
            )
        found |= rows
        path_of |= dict.fromkeys(rows, path)
    return found
