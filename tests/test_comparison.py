"""The report's Tables 3 and 4 made again: every number in its place, every source named."""

from vae_attn.config import default_config
from vae_attn.experiments.anomaly import comparison, published, summary
from vae_attn.reporting import tables

BASELINE = "reconstruction_error/image"


def config_of(name, *, style="contrast", layers=(), kind="none"):
    config = default_config()
    config.data.name = name
    config.attention.style, config.attention.layer = style, "conv2"
    config.attention.layers, config.attention.calibration = layers, kind
    config.evaluate.layers = ("conv1", "conv2", "conv3")
    return config


def scores_of(variants, metric="pixel_auroc"):
    return {f"{name}/{metric}": value for name, value in variants.items()}


def by_first_cell(table):
    header, *rows = table.rows
    assert all(len(row) == len(header) for row in rows)
    return {row[0]: dict(zip(header[1:], row[1:], strict=True)) for row in rows}


PED1 = scores_of(
    {"paper/conv1": 0.1, "paper/conv2": 0.2, "paper/conv3": 0.3, "paper/fused": 0.35}
    | {"contrast/conv1": 0.4, "contrast/conv2": 0.5, "contrast/conv3": 0.6}
    | {"contrast/fused.ratio": 0.75, BASELINE: 0.7, "authors_code/conv1": 0.8}
)


def test_table_3_has_ours_by_layer_above_the_report_and_liu():
    config = config_of("ucsd_ped1", layers=("conv1", "conv2", "conv3"), kind="ratio")
    (table,) = comparison.compare(config, {"": PED1})
    assert "Table 3" in table.title
    layers = ("conv1", "conv2", "conv3")
    cells = {name: list(row.values()) for name, row in by_first_cell(table).items()}
    assert list(by_first_cell(table)["ours, paper"]) == [*layers, "averaged", "no layer"]
    assert cells == {
        "ours, paper": ["0.100", "0.200", "0.300", "0.350", ""],
        "ours, contrast": ["0.400", "0.500", "0.600", "", ""],
        "ours, contrast/fused.ratio": ["", "", "", "0.750", ""],
        "ours, reconstruction error": ["", "", "", "", "0.700"],
        "report, Table 3": ["0.58", "0.58", "0.58", "", ""],
        "Liu et al., as the report cites them": ["0.89", "0.92", "0.91", "", ""],
    }
    assert published.REPORT in table.note
    assert published.LIU in table.note


def test_average_precision_stands_by_layer_too():
    names = {"paper/conv2": 0.05, "contrast/conv1": 0.06, "median_difference/image": 0.07}
    scores = PED1 | scores_of(names, "average_precision")
    scores |= scores_of({name: 2 * value for name, value in names.items()}, "best_f1_test")
    config = config_of("ucsd_ped1", layers=("conv1", "conv2", "conv3"))
    _, table = comparison.compare(config, {"": scores})
    rows = by_first_cell(table)
    assert rows["ours, paper"]["conv2"] == "0.050 / 0.100"
    assert rows["ours, paper"]["conv1"] == ""
    assert rows["ours, contrast"]["conv1"] == "0.060 / 0.120"
    assert rows["no model, median difference"]["no layer"] == "0.070 / 0.140"
    assert not [name for name in rows if "report" in name]


def test_average_precision_stands_by_category():
    metrics = {"average_precision": 0.6, "best_f1_test": 0.5, "pixel_auroc": 0.9}
    runs = {c: {f"{BASELINE}/{m}": v for m, v in metrics.items()} for c in ("pill", "carpet")}
    (table,) = comparison.compare(config_of("mvtec_ad"), runs)
    rows = by_first_cell(table)
    assert rows["pill"] == {"ours, reconstruction error": "0.600 / 0.500"}
    assert rows["mean of 2"] == rows["pill"]


def test_calibrated_single_layer_stands_under_its_layer():
    scores = PED1 | scores_of({"contrast/conv2.z": 0.9})
    (table,) = comparison.compare(config_of("ucsd_ped1", kind="z"), {"": scores})
    assert by_first_cell(table)["ours, contrast/conv2.z"]["conv2"] == "0.900"


CATEGORIES = {"carpet": 0.1, "pill": 0.3, "cable": 0.5, "bottle": 0.7}
MVTEC = {
    category: {
        f"{name}/{metric}": value + extra
        for name, extra in (("paper/fused", 0.0), ("contrast/fused.ratio", 0.1), (BASELINE, 0.2))
        for metric, value in (
            ("pixel_auroc", base),
            ("best_iou_test", base / 2),
            ("share_missed", base),
        )
    }
    for category, base in CATEGORIES.items()
}


def mvtec_tables(categories):
    config = config_of("mvtec_ad", layers=("conv1", "conv2"), kind="ratio")
    runs = {category: MVTEC[category] for category in categories}
    return comparison.compare(config, runs)


def test_table_4_has_a_row_a_category_and_the_mean_over_those_with_all_numbers():
    table, _ = mvtec_tables(CATEGORIES)
    assert "Table 4" in table.title
    rows = by_first_cell(table)
    assert rows["carpet"] == {
        "ours, paper/fused": "0.100 / 0.050",
        "ours, contrast/fused.ratio": "0.200 / 0.150",
        "ours, reconstruction error": "0.300 / 0.250",
        "report, Table 4": "0.39 / 0.007",
        "Liu et al.": "0.78 / 0.10",
    }
    assert rows["bottle"]["report, Table 4"] == ""
    assert rows["bottle"]["Liu et al."] == "0.87 / 0.27 (recalled)"
    # The bottle, which the report lacks, is not in the mean: every column is of the same three.
    assert rows["mean of 3"]["ours, paper/fused"] == "0.300 / 0.150"
    assert rows["mean of 3"]["report, Table 4"] == "0.48 / 0.032"
    assert rows["mean of 3"]["Liu et al."] == "0.84 / 0.15"
    for source in (published.REPORT, published.LIU, "recalled: from memory"):
        assert source in table.note
    assert "paper/fused: the paper's maps of conv1, conv2, not calibrated" in table.note


def test_single_category_is_a_table_of_one_row():
    table, missed = mvtec_tables(["bottle"])
    assert list(by_first_cell(table)) == ["bottle"]
    assert list(by_first_cell(table)["bottle"])[-1] == "Liu et al."
    row = by_first_cell(missed)["bottle"]
    assert row["ours, paper/fused"] == "0.700"
    assert row["report, by eye, over its ten categories"] == "about 0.7"


def test_share_of_missed_defects_stands_beside_the_report_s():
    _, missed = mvtec_tables(CATEGORIES)
    rows = by_first_cell(missed)
    assert rows["carpet"]["ours, contrast/fused.ratio"] == "0.200"
    assert rows["mean of 4"] == {
        "ours, paper/fused": "0.400",
        "ours, contrast/fused.ratio": "0.500",
        "ours, reconstruction error": "0.600",
        "report, by eye, over its ten categories": "about 0.7",
    }
    assert rows["carpet"]["report, by eye, over its ten categories"] == ""
    assert "ten images of all ten categories about 70%" in missed.note


def test_nothing_of_ours_no_table():
    for name in ("mvtec_ad", "ucsd_ped1", "folder"):
        assert comparison.compare(config_of(name), {"": {}}) == []
    assert comparison.compare(config_of("folder"), {"": PED1}) == []


def test_seeds_keep_their_deviation():
    scores = MVTEC["pill"] | {"paper/fused/pixel_auroc_std": 0.02}
    config = config_of("mvtec_ad", layers=("conv1", "conv2"), kind="ratio")
    table, _ = comparison.compare(config, {"pill": scores})
    assert by_first_cell(table)["pill"]["ours, paper/fused"] == "0.300 ± 0.020 / 0.150"


def test_nothing_scored_gives_the_reason_alone(tmp_path):
    made = [
        summary.scores_table({"active_latents/image/count": 3.0}, note="Not scored: no images.")
    ]
    text = tables.write_markdown(made, tmp_path / "table.md", title="All").read_text(
        encoding="utf-8"
    )
    assert text == "# All\n\n## Where is the defect?\n\nNot scored: no images.\n"


def test_markdown_has_each_table_under_its_heading(tmp_path):
    made = [
        tables.Table("One", [["a", "b*"], ["1", "2"]], "* starred."),
        summary.scores_table(
            {"s/l/aupro": 0.5, "s/l/aupro_low": 0.4, "s/l/aupro_high": 0.6}, note="Of the data."
        ),
    ]
    text = tables.write_markdown(made, tmp_path / "table.md", title="All").read_text(
        encoding="utf-8"
    )
    assert text.startswith(
        "# All\n\n## One\n\n| a | b\\* |\n| --- | --- |\n| 1 | 2 |\n\n\\* starred."
    )
    assert "| 0.500 [0.400, 0.600] |" in text
    assert text.endswith("are expected to exceed. Of the data.\n")
