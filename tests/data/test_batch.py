from collections import Counter

import pytest

from ldae.data import describe_counts
from ldae.data.batch import Decoder, make_labels


def test_one_line_for_the_log():
    counts = Counter({"skipped not an image": 2, "skipped empty file": 1, "converted 16-bit": 1200})
    assert describe_counts(counts) == "converted 1,200 (1,200 16-bit), skipped 3 (2 not an image, 1 empty file)"


def test_decoder_counts_and_refuses_other_channels():
    counts = Counter()
    assert Decoder(3, 8)(b"", counts) is None
    assert counts == {"skipped empty file": 1}
    with pytest.raises(ValueError, match="num_channels=2"):
        Decoder(2, 8)


def test_missing_labels_are_minus_one():
    assert make_labels([3, None, True]) == [3, -1, 1]
