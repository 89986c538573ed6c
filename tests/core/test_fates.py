"""Every item has one fate, and the counts of a stage sum to what entered it."""

from __future__ import annotations

import pytest

from vila_data.core.errors import DataError
from vila_data.core.fates import IMAGE_ERRORS, RECORD_REASONS, Funnel, ImageError


def funnel() -> Funnel:
    found = Funnel()
    found.add("download", "images", "kept", 7)
    found.add("download", "images", "failed:dns", 2)
    found.add("download", "images", "failed:dns")
    found.add("filter", "images", "dropped:min_similarity", 3)
    found.add("filter", "images", "kept", 4)
    return found


def test_a_stage_sums_to_what_entered_it() -> None:
    found = funnel()
    found.check("download", "images", 10)
    found.check("filter", "images", found.kept("download", "images"))
    found.check("download", "records", 0)
    assert (found.total("download", "images"), found.kept("filter", "images")) == (10, 4)
    with pytest.raises(DataError, match=r"funnel: filter: 8 images entered, but 7 have a fate"):
        found.check("filter", "images", 8)


def test_funnels_of_parts_add_up_to_that_of_the_corpus() -> None:
    whole = Funnel.from_dict(funnel().as_dict())
    assert whole.as_dict() == funnel().as_dict()
    whole.merge(funnel().as_dict())
    assert whole.as_dict()["download"]["images"] == {"failed:dns": 6, "kept": 14}
    assert list(whole.as_dict()) == ["download", "filter"], "stages come in the order of the data's path"


def test_an_error_has_a_class_of_the_fixed_list() -> None:
    assert str(ImageError("too_many_pixels", "9 x 9")) == "too_many_pixels: 9 x 9" and str(ImageError("dns")) == "dns"
    with pytest.raises(ValueError, match="no such image error: gone"):
        ImageError("gone")
    assert len(set(IMAGE_ERRORS)) == len(IMAGE_ERRORS) and len(set(RECORD_REASONS)) == len(RECORD_REASONS)
