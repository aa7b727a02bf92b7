"""Numbers of others: the references of the rows of scores (`scores`); each with its source.

Liu et al.'s are those that the report cites, but for `TABLE_4_LIU_RECALLED`, which are from memory
of the paper, without a source at hand, and are called so wherever they are shown.
"""

REPORT = (
    'van den Berg, Meijs, Oldenkamp and Verhaar, "Reproducibility report: Towards Visually '
    'Explaining Variational Autoencoders"'
)
LIU = 'Liu et al., "Towards Visually Explaining Variational Autoencoders", CVPR 2020'

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

# MVTec-AD: share of maps that miss the defect.
MISSED_REPORT_HOW = (
    "by eye; its section 4.3: 'By choosing a random subset of ten images of all ten categories "
    "about 70% of the results did not correctly highlight the anomalies'"
)

IN_TABLE_3 = ("report, Table 3", "Liu et al., as the report cites them")
IN_TABLE_4 = ("report, Table 4", "Liu et al.")
RECALLED = "Liu et al., recalled"


def _column(place: int) -> dict[str, dict[str, float]]:
    """One of the two scores of Table 4: by source, and there by category."""
    tables = (TABLE_4_REPORT, TABLE_4_LIU, TABLE_4_LIU_RECALLED)
    return {
        source: {category: pair[place] for category, pair in table.items()}
        for source, table in zip((*IN_TABLE_4, RECALLED), tables, strict=True)
    }


PIXEL_AUROC = dict(zip(IN_TABLE_3, (TABLE_3_REPORT, TABLE_3_LIU), strict=True)) | _column(0)
BEST_IOU = _column(1)
SHARE_MISSED = {"report, by eye": {"its ten categories": "about 0.7"}}
