"""The flags of `vae_attn.main`, and one-sentence errors for invalid ones."""

import difflib
import importlib.machinery
import importlib.util
import pathlib
import sys
import warnings
from collections.abc import Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from vae_attn.config import flat
from vae_attn.errors import UserError, shown

_NO_CONFIG = (
    "--config is missing: give one, such as --config=configs/digits.py, or the --workdir of a run "
    "that exists."
)

# The recipes: configs/ of a checkout, which a wheel holds as vae_attn/configs (setup.py).
_PACKAGE = pathlib.Path(__file__).parent
_RECIPES = next(
    (folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if folder.is_dir()),
    None,
)

MODES = ("all", "train", "evaluate", "explain", "export", "report")
_LONGEST = 1000  # characters of a message that is not ours


class _Configs(flags.ArgumentParser):
    """From `FILE[:VARIANT]`, or the `config.json` of a run, to a config."""

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        config = _load(argument)
        _check_keys(config, sys.argv)
        return config.lock()


config_flags.DEFINE_config_file(
    "config", None, "Experiment, a file of configs/; default that of the run in --workdir."
)
flags.FLAGS["config"].parser = _Configs()
flags.DEFINE_string("workdir", None, "Folder of the run; default runs/<config name>.")
flags.DEFINE_enum(
    *("mode", "all", MODES),
    "train; evaluate: score maps; explain: draw them; export: for others; report: compare runs.",
)
flags.DEFINE_string(
    "images", None, "With --mode=explain: own images, a file, a folder or a quoted pattern."
)
flags.DEFINE_enum(
    *("tiles", None, ("place", "free")),
    "With --images: tiles of the model's size, calibrated per place of a tile or free of place.",
)
flags.DEFINE_string(
    "workdirs", None, "With --mode=report: the runs, folders or quoted patterns; default runs/*."
)
flags.DEFINE_bool(
    "distributed", False, "One process per host, as found from TPU, Slurm or Kubernetes."
)
flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of the first process, if the cluster does not say it."
)
flags.DEFINE_integer("num_processes", None, "Where the cluster does not say it.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Where the cluster does not say it.", lower_bound=0)
flags.DEFINE_integer(
    "stopped_exit_code", 0, "When a signal stops the training; the files of launch/ set it."
)


def parse(argv: Sequence[str]) -> list[str]:
    """The parser of absl, with one sentence instead of a traceback for what a config cannot take.

    Args:
      argv: the command line, program name first.

    Returns:
      The program's name alone, since there are no positional arguments.

    Raises:
      UserError: for an unknown key, a whole section, a value of the wrong type, a missing or broken
        config file.
    """
    try:
        with warnings.catch_warnings():
            # A backslash in a value is one, whatever Python would say of it in its own code.
            warnings.simplefilter("ignore", SyntaxWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            rest = flags.FLAGS([*argv[:1], *_config_of_workdir(argv), *argv[1:]])
    except UserError:
        raise
    except Exception as error:  # of what a config file or a value may hold
        if isinstance(error.__context__, UserError):  # absl wraps what a parser raises
            raise error.__context__ from None
        if isinstance(error, flags.UnrecognizedFlagError) and error.flagname.startswith("config."):
            raise UserError(_NO_CONFIG) from error
        raise UserError(f"the command line cannot be used: {_on_one_line(error)}") from error
    _check_together(flags.FLAGS)
    if len(rest) > 1:
        raise UserError(
            f"unexpected argument {shown(repr(rest[1]))}: every option starts with --, and a "
            "pattern of files is quoted."
        )
    return rest


def default_workdir() -> pathlib.Path:
    """`runs/<config file>_<variant>`; see `workdir.default` for other images than the config's."""
    from vae_attn import workdir  # takes a second, which a wrong flag need not wait for

    file, data_dir = flags.FLAGS["config"].config_filename, flags.FLAGS.config.data.dir
    own = data_dir == _load(file).data.dir
    return workdir.default(file, "" if own else data_dir)


def _config_of_workdir(argv: Sequence[str]) -> list[str]:
    """The --config flag of the run in --workdir, if it exists and no config is given."""
    given = flags.FlagValues()
    for name in ("config", "workdir", "mode"):
        flags.DEFINE_string(name, None, "", flag_values=given)
    given.set_gnu_getopt()  # not to stop at the values of flags that are unknown here
    given(argv, known_only=True)
    if given.mode == "report" or given.config is not None or given.workdir is None:
        return []
    from vae_attn import workdir

    if (path := workdir.config_path(pathlib.Path(given.workdir))) is None:
        raise UserError(
            f"--config is missing, and --workdir={shown(given.workdir)} holds no run with one: "
            "give one, such as --config=configs/digits.py."
        )
    return [f"--config={path}"]


def _check_together(values: flags.FlagValues) -> None:
    if values.mode == "report" and values.config is not None:
        raise UserError("--mode=report reads the configs of --workdirs: leave out --config.")
    if values.mode != "report" and values.config is None:
        raise UserError(_NO_CONFIG)
    if values.images is not None and values.mode != "explain":
        raise UserError(f"--images is for --mode=explain, and not for --mode={values.mode}.")
    if values.tiles is not None and values.images is None:
        raise UserError("--tiles is for images of one's own: give --mode=explain --images=FILES.")
    if values.workdirs is not None and values.mode != "report":
        raise UserError(f"--workdirs is for --mode=report, and not for --mode={values.mode}.")


def _load(name: str) -> ml_collections.ConfigDict:
    """What `get_config(variant)` of a file returns; the variant is what follows a colon."""
    if name.endswith(".json"):
        from vae_attn import workdir

        return workdir.read(pathlib.Path(name).parent)
    path, *variant = name.split(":", 1)
    try:
        loader = importlib.machinery.SourceFileLoader("vae_attn_config", _file_or_recipe(path))
        module = importlib.util.module_from_spec(
            importlib.util.spec_from_loader(loader.name, loader)
        )
        sys.modules[loader.name] = module
        loader.exec_module(module)
        config = module.get_config(*variant)
        if not isinstance(config, ml_collections.ConfigDict):
            raise TypeError(f"its get_config() returns {config!r}, which is no ConfigDict")
        return config
    except UserError:
        raise
    except Exception as error:  # a config file is code, and may fail in any way
        raise UserError(
            f"--config={shown(name)} cannot be loaded: {_on_one_line(error)}"
        ) from error


def _file_or_recipe(path: str) -> str:
    """The file, or, where there is none, the recipe that came with the package."""
    given = pathlib.Path(path)
    if _RECIPES and given.parts[:-1] == ("configs",) and not given.exists():
        recipe = _RECIPES / given.name
        return str(recipe) if recipe.exists() else path
    return path


def _check_keys(config: ml_collections.ConfigDict, argv: Sequence[str]) -> None:
    """Refuses overrides of keys that the config does not have, and of whole sections."""
    known = flat(config.to_dict())
    for argument in argv:
        option = argument.partition("=")[0]
        prefix = next((p for p in ("--config.", "-config.") if option.startswith(p)), None)
        if prefix is None or (key := option.removeprefix(prefix)) in known:
            continue
        if any(other.startswith(f"{key}.") for other in known):
            raise UserError(
                f"--config.{key} is a section, which cannot be replaced: give its keys one by one, "
                f"such as --config.{key}.KEY=VALUE."
            )
        near = difflib.get_close_matches(key[:100], known, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UserError(
            f"{shown(argument)}: the config has no key {shown(repr(key))}; vae_attn/config.py "
            f"lists all.{hint}"
        )


def _on_one_line(error: Exception) -> str:
    return shown(" ".join(str(error).split()) or type(error).__name__, _LONGEST)
