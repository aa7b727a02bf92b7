"""Numbers of others, to stand beside ours; each with its source.

`Report`: the reproducibility report on Liu et al., its Tables 3 and 4. `Liu et al.`: as that report
cites them; those marked `recalled` are from memory of the paper, not from a source at hand.
"""

# MVTec-AD: pixel AUROC and IoU (at the threshold that is best on the test set) by category.
TABLE_4_REPORT = {
    "carpet": (0.39, 0.007),
    "leather": (0.47, 0.045),
    "tile": (0.56, 0.079),
    "wood": (0.50, 0.017),
    "cable": (0.27, 0.006),
    "capsule": (0.16, 0.011),
    "hazelnut": (0.82, 0.058),
    "metal_nut": (0.78, 0.242),
    "pill": (0.79, 0.084),
    "transistor": (0.40, 0.008),
}
TABLE_4_LIU = {
    "carpet": (0.78, 0.10),
    "leather": (0.95, 0.24),
    "tile": (0.80, 0.23),
    "wood": (0.77, 0.14),
    "cable": (0.90, 0.18),
    "capsule": (0.74, 0.11),
    "hazelnut": (0.98, 0.44),
    "metal_nut": (0.94, 0.49),
    "pill": (0.83, 0.18),
    "transistor": (0.93, 0.30),
}
TABLE_4_LIU_RECALLED = {
    "grid": (0.73, 0.02),
    "bottle": (0.87, 0.27),
    "screw": (0.97, 0.17),
    "toothbrush": (0.94, 0.14),
    "zipper": (0.78, 0.06),
}

# UCSD Ped1: pixel AUROC by layer.
TABLE_3_REPORT = {"conv1": 0.58, "conv2": 0.58, "conv3": 0.58}
TABLE_3_LIU = {"conv1": 0.89, "conv2": 0.92, "conv3": 0.91}


def mvtec_ad(category: str) -> dict[str, tuple[float, float]]:
    """Pixel AUROC and IoU that others give for a category, by source."""
    found = {
        "report": TABLE_4_REPORT.get(category),
        "Liu et al.": TABLE_4_LIU.get(category),
        "Liu et al. (recalled)": TABLE_4_LIU_RECALLED.get(category),
    }
    return {source: values for source, values in found.items() if values is not None}


def lines(data_name: str, category: str) -> list[str]:
    """Sentences to stand under a run's table; none where nobody gave numbers.

    Args:
      data_name: `data.name` of the config.
      category: `data.category`.

    Returns:
      One line a source.
    """
    if data_name == "ucsd_ped1":
        return [
            f"{source}, pixel AUROC: " + ", ".join(f"{k} {v:.2f}" for k, v in values.items()) + "."
            for source, values in (("Report", TABLE_3_REPORT), ("Liu et al.", TABLE_3_LIU))
        ]
    if data_name == "mvtec_ad":
        return [
            f"{source[0].upper()}{source[1:]}: pixel AUROC {auroc:.2f}, best IoU {iou:.3g}."
            for source, (auroc, iou) in mvtec_ad(category).items()
        ]
    return []
