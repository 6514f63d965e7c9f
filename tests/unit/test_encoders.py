"""Layers, encoders and heads against explicit loops and torch's own functions."""

import numpy as np
import pytest
import torch
from torch import nn

from ukbmm.core import ModelError
from ukbmm.models.genotype import GenotypeEncoder, GenotypeSettings
from ukbmm.models.layers import LocallyConnected, mlp
from ukbmm.models.tabular import TabularEncoder, tabular_design


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_perceptron_has_the_widths_asked_for_and_is_linear_without_hidden_layers():
    widths = [layer.weight.shape for layer in mlp([5, 7, 3, 2]) if isinstance(layer, nn.Linear)]
    assert widths == [(7, 5), (3, 7), (2, 3)]
    linear = mlp([4, 2])
    x = torch.randn(6, 4, generator=generator())
    torch.testing.assert_close(linear(x), x @ linear[0].weight.T + linear[0].bias)
    assert mlp([4, 8, 2], last_zero=True)(x).abs().max() == 0
    with pytest.raises(ModelError, match="an input and an output width"):
        mlp([3])


@pytest.mark.parametrize(("width", "block", "out"), [(12, 4, 3), (13, 4, 2), (3, 8, 1), (1, 1, 1)])
def test_locally_connected_equals_a_loop_over_blocks(width, block, out):
    torch.manual_seed(0)
    layer, x = LocallyConnected(width, block, out), torch.randn(5, width)
    parts = []
    for b, start in enumerate(range(0, width, block)):
        piece = x[:, start : start + block]
        parts.append(piece @ layer.weight[b, : piece.shape[1]])
    torch.testing.assert_close(layer(x), torch.cat(parts, dim=1))
    assert layer.width == -(-width // block) * out


def test_a_block_of_variants_reaches_its_own_outputs_only():
    layer = LocallyConnected(12, 4, 2)
    x = torch.zeros(1, 12, requires_grad=True)
    layer(x)[0, 2:4].sum().backward()
    assert (x.grad[0] != 0).tolist() == [False] * 4 + [True] * 4 + [False] * 4


def test_the_linear_part_of_genotypes_is_a_product():
    torch.manual_seed(0)
    encoder, x, w = GenotypeEncoder(30, n_outputs=2), torch.randn(9, 30), torch.randn(30, 2)
    assert encoder.additive(x).abs().max() == 0
    encoder.load_additive(w, torch.tensor([0.5, -1.0]))
    torch.testing.assert_close(encoder.additive(x), x @ w + torch.tensor([0.5, -1.0]))


def test_before_training_genotypes_say_nothing_beside_their_score():
    torch.manual_seed(0)
    encoder = GenotypeEncoder(40, dim=6, settings=GenotypeSettings(block=8)).eval()
    score = torch.randn(4, 1)
    expected = score @ encoder.from_score.weight.T
    torch.testing.assert_close(encoder(torch.randn(4, 40), score), expected)


def test_a_table_is_written_as_filled_numbers_missing_flags_and_indicators():
    numbers = torch.tensor([[0.5, torch.nan], [torch.nan, -2.0]])
    levels = torch.tensor([[2, 0], [0, 1]])
    assert tabular_design(numbers, levels, [3, 2]).tolist() == [
        [0.5, 0, 0, 1, 0, 0, 1, 1, 0],
        [0, -2, 1, 0, 1, 0, 0, 0, 1],
    ]


def test_the_linear_part_of_a_table_is_its_design_times_the_weights():
    rng = np.random.default_rng(0)
    numbers = torch.tensor(rng.normal(size=(50, 3)), dtype=torch.float32)
    numbers[torch.tensor(rng.random((50, 3)) < 0.2)] = torch.nan
    levels = torch.tensor(np.column_stack([rng.integers(0, 4, 50), rng.integers(0, 2, 50)]))
    encoder = TabularEncoder(3, [4, 2], n_outputs=2)
    weights, offset = torch.randn(12, 2, generator=generator()), torch.tensor([1.0, 2.0])
    encoder.load_additive(weights, offset)
    expected = tabular_design(numbers, levels, [4, 2]) @ weights + offset
    torch.testing.assert_close(encoder.additive((numbers, levels)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("numbers", "sizes"), [(3, []), (0, [4, 2]), (2, [3])])
def test_a_table_of_numbers_only_or_codes_only_can_be_encoded_and_learned(numbers, sizes):
    encoder = TabularEncoder(numbers, sizes, dim=5)
    x = torch.full((7, numbers), torch.nan), torch.zeros(7, len(sizes), dtype=torch.long)
    z = encoder(x, encoder.additive(x))
    z.sum().backward()
    assert z.shape == (7, 5) and z.isfinite().all()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)
    with pytest.raises(ModelError, match="numbers or codes"):
        TabularEncoder(0, [])


def test_missing_and_zero_are_told_apart():
    torch.manual_seed(0)
    encoder = TabularEncoder(1, []).eval()
    none = torch.zeros(1, 0, dtype=torch.long)
    encoded = [encoder((torch.tensor([[value]]), none), torch.zeros(1, 1)) for value in (0.0, torch.nan)]
    assert not torch.allclose(*encoded)
