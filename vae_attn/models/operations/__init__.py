"""What layers compute: XLA's and Flax's own results, with gradients that are fast on the CPU too.

The one seam between the models and the speed of the CPU: `windows` has what slides over images,
`sums` what adds up over a batch. A reader of the models can take each function by its docstring.
"""

from vae_attn.models.operations.sums import EPSILON, add_bias, batch_norm
from vae_attn.models.operations.windows import conv, conv_transpose, max_pool

__all__ = ["EPSILON", "add_bias", "batch_norm", "conv", "conv_transpose", "max_pool"]
