"""The three convolutional VAEs of the report's Figure 5: MNIST (a), UCSD Ped1 (b), dSprites (c).

And a fourth, of ours, which is light enough to learn colour images without an accelerator.
Decoders end before the sigmoid: losses take logits. In all tables the second head (the log
variance) is a twin of the last encoder row, as in the authors' code.
"""

from vae_attn.models.tables import Conv, ConvTranspose, Flatten, Linear, ReLU, Row, Unflatten
from vae_attn.models.vae import Architecture

# Figure 5 (a). The ReLU that the table repeats behind Unflatten changes nothing and is left out.
MNIST = Architecture(
    name="mnist",
    image_shape=(28, 28, 1),
    encoder=(
        Conv("conv1", 64, 4, 2, 1),
        ReLU("conv1_relu"),
        Conv("conv2", 128, 4, 2, 1),
        ReLU("conv2_relu"),
        Flatten(),
        Linear("fc1", 1024),
        ReLU("fc1_relu"),
    ),
    decoder=(
        Linear("fc1", 1024),
        ReLU("fc1_relu"),
        Linear("fc2", 6272),
        ReLU("fc2_relu"),
        Unflatten(7, 7, 128),
        ConvTranspose("convtr1", 64, 4, 2, 1),
        ReLU("convtr1_relu"),
        ConvTranspose("convtr2", 1, 4, 2, 1),
    ),
    initialization="torch",
)

# Figure 5 (b). The table drops the encoder's Linear(32) and the decoder's Linear(1024) between
# the two ReLUs around the latents; the parameter count of the report's Table 1 has them.
UCSD_PED1 = Architecture(
    name="ucsd_ped1",
    image_shape=(100, 100, 1),
    encoder=(
        Conv("conv1", 64, 4, 2, 1),
        ReLU("conv1_relu"),
        Conv("conv2", 128, 4, 2, 1),
        ReLU("conv2_relu"),
        Conv("conv3", 256, 4, 2, 1),
        ReLU("conv3_relu"),
        Flatten(),
        Linear("fc1", 1024),
        ReLU("fc1_relu"),
    ),
    decoder=(
        Linear("fc1", 1024),
        ReLU("fc1_relu"),
        Linear("fc2", 36864),
        ReLU("fc2_relu"),
        Unflatten(12, 12, 256),
        ConvTranspose("convtr1", 128, 5, 2, 1),
        ReLU("convtr1_relu"),
        ConvTranspose("convtr2", 64, 4, 2, 1),
        ReLU("convtr2_relu"),
        ConvTranspose("convtr3", 1, 4, 2, 1),
    ),
    initialization="torch",
)

# Figure 5 (c). The table gives conv5 padding 1 and a 1 x 1 output; only padding 0 gives that.
# Its 1 x 1 convolutions on 1 x 1 maps are linear layers.
DSPRITES = Architecture(
    name="dsprites",
    image_shape=(64, 64, 1),
    encoder=(
        Conv("conv1", 32, 4, 2, 1),
        ReLU("conv1_relu"),
        Conv("conv2", 32, 4, 2, 1),
        ReLU("conv2_relu"),
        Conv("conv3", 64, 4, 2, 1),
        ReLU("conv3_relu"),
        Conv("conv4", 64, 4, 2, 1),
        ReLU("conv4_relu"),
        Conv("conv5", 128, 4, 1, 0),
        ReLU("conv5_relu"),
        Flatten(),
    ),
    decoder=(
        Linear("fc1", 128),
        ReLU("fc1_relu"),
        Unflatten(1, 1, 128),
        ConvTranspose("convtr1", 64, 4, 1, 0),
        ReLU("convtr1_relu"),
        ConvTranspose("convtr2", 64, 4, 2, 1),
        ReLU("convtr2_relu"),
        ConvTranspose("convtr3", 32, 4, 2, 1),
        ReLU("convtr3_relu"),
        ConvTranspose("convtr4", 32, 4, 2, 1),
        ReLU("convtr4_relu"),
        ConvTranspose("convtr5", 1, 4, 2, 1),
    ),
    initialization="normal",
)


def convnet(image_size: int = 128, channels: int = 3) -> Architecture:
    """A plain VAE of four strided convolutions, for machines without an accelerator.

    Not in the report: it stands in for its ResNet18, which takes hours without an accelerator.

    Args:
      image_size: height and width in pixels, a multiple of 16.
      channels: of the images.

    Returns:
      The architecture.
    """
    widths, side = (32, 64, 128, 256), image_size // 16
    encoder: list[Row] = []
    for i, width in enumerate(widths, 1):
        encoder += [Conv(f"conv{i}", width, 4, 2, 1), ReLU(f"conv{i}_relu")]
    decoder: list[Row] = [
        Linear("fc1", 256),
        ReLU("fc1_relu"),
        Linear("fc2", side * side * widths[-1]),
        ReLU("fc2_relu"),
        Unflatten(side, side, widths[-1]),
    ]
    for i, width in enumerate(widths[-2::-1], 1):
        decoder += [ConvTranspose(f"convtr{i}", width, 4, 2, 1), ReLU(f"convtr{i}_relu")]
    return Architecture(
        name="convnet",
        image_shape=(image_size, image_size, channels),
        encoder=(*encoder, Flatten(), Linear("fc1", 256), ReLU("fc1_relu")),
        decoder=(*decoder, ConvTranspose("convtr4", channels, 4, 2, 1)),
        initialization="torch",
    )
