"""The batch: what is absent is blanked, what is malformed is refused."""

import pytest
import torch

from ukbmm.core import DataError
from ukbmm.data.batch import MultiModalBatch, blank_absent, check_batch, move


def batch(**changes) -> MultiModalBatch:
    "Three people, two modalities."
    parts = {"table": (torch.arange(6.0).view(3, 2), torch.tensor([[1], [2], [3]])), "snps": torch.ones(3, 4),
             "present": torch.tensor([[True, True], [True, False], [False, True]]), "row": torch.tensor([5, 6, 7])}  # fmt: skip
    return MultiModalBatch({**parts, **changes})


def test_modalities_are_in_the_order_of_present_without_reserved_names():
    assert batch(additive=torch.zeros(3, 2, 1)).modalities == ["table", "snps"]
    assert batch().size == 3
    check_batch(batch())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"present": torch.ones(3, 2)}, "bool .batch, 2.*float32"),
        ({"present": torch.ones(3, 3, dtype=torch.bool)}, "bool .batch, 2"),
        ({"present": None}, "found none"),
        ({"snps": torch.ones(2, 4)}, "modality 'snps'.*3 participants.*2"),
        ({"table": (torch.ones(3, 2), torch.ones(4, 1))}, "modality 'table'.*3 participants.*4"),
        ({"present": torch.tensor([[True, True], [False, False], [False, True]])}, "at least one.*1 without"),
    ],
)
def test_a_batch_that_breaks_the_contract_is_refused(changes, message):
    with pytest.raises(DataError, match=message):
        check_batch(batch(**changes))


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e30])
def test_blanking_overwrites_values_and_stops_gradients(junk):
    x = torch.tensor([[1.0, 2.0], [junk, junk]], requires_grad=True)
    blanked = blank_absent(x, torch.tensor([True, False]))
    assert blanked.tolist() == [[1, 2], [0, 0]]
    (blanked**2).sum().backward()
    assert x.grad.tolist() == [[2, 4], [0, 0]]


def test_blanking_reaches_every_tensor_of_a_tuple_of_any_shape():
    image, codes = torch.ones(2, 1, 3, 3), torch.ones(2, 5, dtype=torch.long)
    blank_image, blank_codes = blank_absent((image, codes), torch.tensor([False, True]))
    assert blank_image.sum((1, 2, 3)).tolist() == [0, 9] and blank_codes.sum(1).tolist() == [0, 5]
    assert blank_codes.dtype == torch.long


def test_moving_keeps_type_and_structure():
    moved = batch().to("cpu")
    assert isinstance(moved, MultiModalBatch) and isinstance(moved["table"], tuple)
    assert move((torch.ones(1),), "meta")[0].device.type == "meta"


def test_a_batch_prints_shapes_and_shares_and_no_values():
    text = repr(batch(snps=torch.full((3, 4), 31.25)))
    assert text == "MultiModalBatch of 3: table [3, 2] and [3, 1] present 67%; snps [3, 4] present 67%"
