"""Optional dependencies: imported where they are needed, or a sentence says what to install."""

import subprocess
import sys

import numpy as np
import pytest

from vae_attn import extras
from vae_attn.data import dsprites_files, mnist, stream
from vae_attn.data.dsprites import GRID
from vae_attn.errors import UserError


@pytest.fixture
def missing(monkeypatch):
    for name in ("grain", "array_record"):
        monkeypatch.setitem(sys.modules, name, None)  # which import takes for one that is not there


def test_streaming(missing):
    images = np.zeros((3, 2, 2, 1), np.uint8)
    batches = stream.read_ahead(images, lambda step: np.array([step]), start=0, stop=2)
    with pytest.raises(UserError, match=r"resident=true .* needs grain .*'vae_attn\[stream\]'"):
        next(batches)


def test_prepared_data_sets(missing, tmp_path):
    sentence = r"mnist needs array_record .*pip install 'vae_attn\[tfds\]'"
    with pytest.raises(UserError, match=sentence):
        mnist.load(tmp_path, 3)
    with pytest.raises(UserError, match=sentence.replace("mnist", "dsprites")):
        dsprites_files.read_tfds(tmp_path, GRID)


def test_what_is_installed():
    assert extras.load("json", extra="none", purpose="this").dumps([]) == "[]"


def test_commands_import_no_extra():
    """Neither those, nor what tensorboardX imports where torch is installed."""
    code = (
        "import sys, vae_attn.main, vae_attn.experiments.run\n"
        "found = {'grain', 'array_record', 'tensorflow', 'tensorflow_datasets', 'torch'}"
        " & set(sys.modules)\n"
        "sys.exit(f'imported: {found}' if found else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
