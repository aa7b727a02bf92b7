"""Numbers of others are the ones of the tables."""

from vae_attn.data import mvtec_ad
from vae_attn.experiments.anomaly import published


def test_ten_categories_of_table_4_have_both_numbers_and_five_are_recalled():
    assert set(published.TABLE_4_REPORT) == set(mvtec_ad.TABLE4_CATEGORIES)
    assert set(published.TABLE_4_LIU) == set(mvtec_ad.TABLE4_CATEGORIES)
    others = set(mvtec_ad.CATEGORIES) - set(mvtec_ad.TABLE4_CATEGORIES)
    assert set(published.TABLE_4_LIU_RECALLED) == others
