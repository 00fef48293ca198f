"""Page Interference: what it says of the method in force."""

import pytest

from tests.screens.pages import linked


@pytest.mark.parametrize(
    ("method", "measure", "said"),
    [
        ("TIES", "Retained signal", True),
        ("Average", "Retained signal", False),
        ("TIES", "Norm imbalance", False),
    ],
)
def test_a_number_of_the_merge_says_when_it_is_not_of_the_method(
    method: str, measure: str, said: bool
) -> None:
    test = linked(method=method, measure=measure)
    assert not test.exception
    captions = [caption.value for caption in test.caption]
    assert any(f"{method} is not linear" in caption for caption in captions) == said
