"""The state of a run in one small file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_attn.errors import UserError
from vae_attn.training import compact


def state_of(value=0.0):
    params = {"w": jnp.linspace(0, 1, 7) + value}
    moments = {"mu": jnp.linspace(1, 2, 7) / 3 + value, "count": jnp.int32(3)}
    return {"step": jnp.int32(5), "params": params, "opt_state": moments}


def test_the_state_is_kept_but_for_the_moments_last_digits(tmp_path):
    path, state = tmp_path / "state.safetensors", state_of()
    assert compact.read(path) is None
    compact.save(path, state, objective="factor_vae", step=5)
    assert compact.read(path) == {"objective": "factor_vae", "step": 5}
    found = compact.load(path, state_of(9.0))
    jax.tree.map(np.testing.assert_array_equal, found, compact.rounded(state))
    np.testing.assert_array_equal(found["params"]["w"], state["params"]["w"])
    np.testing.assert_allclose(found["opt_state"]["mu"], state["opt_state"]["mu"], rtol=2**-8)
    assert (found["opt_state"]["mu"] != state["opt_state"]["mu"]).any()
    assert [x.dtype for x in jax.tree.leaves(found)] == [x.dtype for x in jax.tree.leaves(state)]


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "no_file"])
def test_a_broken_state_is_refused(damage, tmp_path):
    path, state = tmp_path / "state.safetensors", state_of()
    compact.save(path, state, step=5)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-9])
    if damage == "flipped":
        content[-3] ^= 1
        path.write_bytes(content)
    if damage == "other":
        state["params"]["w"] = jnp.zeros(8)
    if damage == "no_file":
        path.write_text("no state", encoding="utf-8")
    with pytest.raises(UserError, match=r"state.safetensors is broken, or of another model: "):
        compact.load(path, state)
