"""FactorVAE's discriminator: tells codes of images from codes whose latents were shuffled."""

import flax.linen as nn
from jaxtyping import Array, Float

from vae_attn.models import layers


class Discriminator(nn.Module):
    """Six hidden layers of 1000 units, leaky ReLU 0.2, two logits (Kim & Mnih 2018, appendix B).

    Attributes:
      units: of each hidden layer.
      hidden_layers: their number.
      initialization: of the weights, see `layers`: `normal`, N(0, 0.02) of a public reproduction,
        or `glorot`, Glorot's uniform of disentanglement_lib.
    """

    units: int = 1000
    hidden_layers: int = 6
    initialization: str = "normal"

    @nn.compact
    def __call__(self, z: Float[Array, "batch latents"]) -> Float[Array, "batch 2"]:
        """Logits of "from q(z)" (0) and of "from the product of its marginals" (1)."""
        for number in range(1, self.hidden_layers + 1):
            z = layers.Dense(self.units, self.initialization, name=f"fc{number}")(z)
            z = nn.leaky_relu(z, negative_slope=0.2)
        return layers.Dense(2, self.initialization, name="logits")(z)
