"""The MVTec-AD VAE of the report's Figure 5 (d): a ResNet18 trunk and its decoder."""

from vae_attn.models.tables import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Flatten,
    Linear,
    Mark,
    MaxPool,
    ReLU,
    Residual,
    Row,
    Unflatten,
)
from vae_attn.models.vae import Architecture

# torchvision's resnet18 without avgpool and fc. `layer1` .. `layer4` are the stages' outputs.
RESNET18_TRUNK: tuple[Row, ...] = (
    Conv("conv1", 64, 7, 2, 3, use_bias=False),
    BatchNorm("bn1"),
    ReLU("conv1_relu"),
    MaxPool("maxpool", 3, 2, 1),
    Residual("layer1_0", 64, 1),
    Residual("layer1_1", 64, 1),
    Mark("layer1"),
    Residual("layer2_0", 128, 2),
    Residual("layer2_1", 128, 1),
    Mark("layer2"),
    Residual("layer3_0", 256, 2),
    Residual("layer3_1", 256, 1),
    Mark("layer3"),
    Residual("layer4_0", 512, 2),
    Residual("layer4_1", 512, 1),
    Mark("layer4"),
)


def _upsampling(index: int, features: int) -> tuple[Row, ...]:
    return (
        ConvTranspose(f"convtr{index}", features, 4, 2, 1),
        BatchNorm(f"bn{index}"),
        ReLU(f"convtr{index}_relu"),
    )


def mvtec_ad(image_size: int = 256) -> Architecture:
    """Figure 5 (d) for square colour images whose side is a multiple of 64, or 224.

    The table leaves out the Flatten behind the trunk and the Unflatten(1024, 4, 4) in the
    decoder; the report added both (its caption), and so do we. At 224 the trunk gives 7 x 7
    features; the decoder then starts from 7 x 7 too and needs one doubling less.

    Args:
      image_size: height and width in pixels; the table's is 256.

    Returns:
      The architecture; 72,803,363 parameters at 256 with 32 latents.
    """
    if image_size == 224:
        start, widths = 7, (512, 256, 128, 64)
    else:
        start, widths = image_size // 64, (512, 256, 128, 64, 32)
    stages = sum((_upsampling(i, width) for i, width in enumerate(widths, 1)), ())
    return Architecture(
        name="mvtec_ad",
        image_shape=(image_size, image_size, 3),
        encoder=(*RESNET18_TRUNK, Flatten(), Linear("fc1", 1024)),
        decoder=(
            Linear("fc1", 1024),
            Linear("fc2", 1024 * start * start),
            Unflatten(start, start, 1024),
            *stages,
            ConvTranspose(f"convtr{len(widths) + 1}", 3, 4, 2, 1),
        ),
        initialization="torch",
    )
