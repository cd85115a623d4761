import pytest
import torch

from ldae.data import Batch, check_disjoint, hash_images


def make_batch(first, count=4):
    images = torch.arange(first, first + count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)
    return Batch(images, torch.arange(count), None)


def gather(*batches):
    return lambda own: torch.cat([hash_images(batch.images) for batch in batches])


def test_hashes_tell_images_apart():
    hashes = hash_images(make_batch(0).images)
    assert hashes.dtype == torch.int64 and len(set(hashes.tolist())) == 4
    assert torch.equal(hashes, hash_images(make_batch(0).images.contiguous()))


def test_same_images_on_two_processes_are_an_error():
    batches = make_batch(0), make_batch(10), make_batch(1)
    with pytest.raises(ValueError, match=r"processes 0 and 2 read the same images \(3 of 4"):
        check_disjoint(batches[0], gather(*batches))


def test_few_equal_images_are_no_error():
    check_disjoint(make_batch(0), gather(make_batch(0), make_batch(2), make_batch(20)))


def test_a_data_set_smaller_than_the_first_batches_is_not_checked():
    check_disjoint(make_batch(0), gather(make_batch(0), make_batch(0)), num_examples=7)
    with pytest.raises(ValueError, match="processes 0 and 1"):
        check_disjoint(make_batch(0), gather(make_batch(0), make_batch(0)), num_examples=8)
