"""vae_attn.main as in small_run.py, training alone, with the fault that FAULT names.

FAULT=KIND:STEP[:NUMBER], in the save of the checkpoint of STEP:
  leaf    kill -9 when NUMBER arrays are written
  commit  kill -9 when all is written, just before the checkpoint gets its name
  delete  kill -9 when NUMBER files of an older checkpoint are removed
  disk    no file may become larger than NUMBER bytes from before that step on
"""

import os
import pathlib
import resource
import signal
import sys

import tensorstore

from vae_attn import main
from vae_attn.data import sampling
from vae_attn.experiments import run as experiment
from vae_attn.training.checkpoints import Checkpoints

saving = False  # whether it is the save of the fault's step


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def watch_saves(step):
    save = Checkpoints.save

    def watched(self, state, **options):
        global saving
        saving = options["step"] == step
        save(self, state, **options)

    Checkpoints.save = watched


def kill_at_leaf(number):
    write, written = tensorstore.TensorStore.write, []

    def counted(self, *arguments, **options):
        future = write(self, *arguments, **options)
        if saving:
            future.result()
            written.append(self)
            if len(written) == number:
                die()
        return future

    tensorstore.TensorStore.write = counted


def kill_at_commit(step):
    def hook(event, arguments):
        if saving and event == "os.rename" and pathlib.Path(arguments[1]).name == str(step):
            die()

    sys.addaudithook(hook)


def kill_at_delete(number):
    removed = None

    def hook(event, arguments):
        nonlocal removed
        if saving and event == "shutil.rmtree" and pathlib.Path(arguments[0]).name.isdigit():
            removed = 0
        elif event == "os.remove" and removed is not None:
            removed += 1
            if removed > number:
                die()

    sys.addaudithook(hook)


def fill_disk(step, size):
    batch_indices = sampling.batch_indices

    def limited(**options):
        if options["step"] == step - 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        return batch_indices(**options)

    sampling.batch_indices = limited


if __name__ == "__main__":
    experiment._evaluate_and_explain = lambda *arguments: None
    kind, *numbers = os.environ.get("FAULT", "none").split(":")
    step, number, *_ = (*map(int, numbers), 0, 0)
    watch_saves(step)
    if kind == "leaf":
        kill_at_leaf(number)
    elif kind == "commit":
        kill_at_commit(step)
    elif kind == "delete":
        kill_at_delete(number)
    elif kind == "disk":
        fill_disk(step, number)
    main.run()
