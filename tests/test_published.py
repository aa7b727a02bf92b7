"""Numbers of others are the ones of the tables, and stand under ours with their source."""

from vae_attn.data import mvtec_ad
from vae_attn.evaluation import published, tables


def test_ten_categories_of_table_4_have_both_numbers_and_five_are_recalled():
    assert set(published.TABLE_4_REPORT) == set(mvtec_ad.TABLE4_CATEGORIES)
    assert set(published.TABLE_4_LIU) == set(mvtec_ad.TABLE4_CATEGORIES)
    others = set(mvtec_ad.CATEGORIES) - set(mvtec_ad.TABLE4_CATEGORIES)
    assert set(published.TABLE_4_LIU_RECALLED) == others


def test_lines_name_their_source(tmp_path):
    assert published.lines("mvtec_ad", "bottle") == [
        "Liu et al. (recalled): pixel AUROC 0.87, best IoU 0.27."
    ]
    assert published.lines("mvtec_ad", "carpet") == [
        "Report: pixel AUROC 0.39, best IoU 0.007.",
        "Liu et al.: pixel AUROC 0.78, best IoU 0.1.",
    ]
    assert published.lines("ucsd_ped1", "")[0] == (
        "Report, pixel AUROC: conv1 0.58, conv2 0.58, conv3 0.58."
    )
    assert published.lines("mnist", "") == []
    path = tables.write(
        {"paper/conv1/pixel_auroc": 0.5}, tmp_path, title="t", published=["Report: 1."]
    )
    assert path.read_text().endswith("\n\nReport: 1.\n")
