"""Fusion under the mask contract: what is absent has no say and gets no gradient."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from ukbmm.models.fusion import FusionSettings
from ukbmm.models.layers import FUSIONS

KINDS = ["concat", "gated"]


def inputs(batch: int = 12, modalities: int = 3, dim: int = 8, seed: int = 0):
    "Representations and a mask with every pattern of presence, the empty one included."
    torch.manual_seed(seed)
    patterns = torch.tensor([[bool(i >> m & 1) for m in range(modalities)] for i in range(2**modalities)])
    return torch.randn(batch, modalities, dim), patterns.repeat(batch, 1)[:batch]


def build(kind: str, modalities: int = 3, dim: int = 8):
    torch.manual_seed(1)
    fusion = FUSIONS[kind](modalities, FusionSettings(kind=kind, dim=dim))
    fusion.prior.data.normal_()
    return fusion.eval()


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -1e30])
@pytest.mark.parametrize("kind", KINDS)
def test_junk_in_absent_slots_changes_no_output_and_gets_no_gradient(kind, junk):
    fusion, (z, present) = build(kind), inputs()
    dirty = torch.where(present.unsqueeze(-1), z, junk).requires_grad_()
    out = fusion(dirty, present)
    assert torch.equal(out, fusion(z, present)) and out.isfinite().all()
    (out**2).sum().backward()
    assert (dirty.grad[~present] == 0).all() and (dirty.grad[present] != 0).any(dim=1).all()
    assert all(p.grad.isfinite().all() for p in fusion.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_presence_itself_matters(kind):
    fusion, (z, _) = build(kind), inputs()
    zeros = z.clone()
    zeros[:, 1] = 0  # somebody whose representation happens to be zero is not somebody without one
    everything, without = torch.ones(12, 3, dtype=torch.bool), torch.tensor([[True, False, True]] * 12)
    assert not torch.allclose(fusion(zeros, everything), fusion(zeros, without))


@pytest.mark.parametrize("kind", KINDS)
def test_people_are_fused_one_by_one_whatever_their_order(kind):
    fusion, (z, present) = build(kind), inputs()
    order = torch.from_numpy(np.random.default_rng(0).permutation(12))
    torch.testing.assert_close(fusion(z[order], present[order]), fusion(z, present)[order])
    torch.testing.assert_close(fusion(z[3:4], present[3:4]), fusion(z, present)[3:4])


@pytest.mark.parametrize("kind", KINDS)
def test_somebody_without_anything_gets_the_prior(kind):
    fusion, (z, _) = build(kind), inputs()
    nothing = torch.zeros(12, 3, dtype=torch.bool)
    assert torch.equal(fusion(z, nothing), fusion.prior.expand(12, 8))


def test_gates_sum_to_one_over_what_is_present_and_are_zero_elsewhere():
    fusion, (z, present) = build("gated"), inputs()
    gates = fusion.gates(z * present.unsqueeze(-1), present)
    assert (gates[~present] == 0).all()
    torch.testing.assert_close(gates.sum(1), present.any(1).float()[:, None].expand(12, 8))


def test_gated_fusion_by_hand_with_one_modality():
    fusion, z = build("gated", 1), torch.randn(5, 1, 8)
    feature = z[:, 0] @ fusion.feature[0] + fusion.feature_bias[0]  # its gate can only be 1
    torch.testing.assert_close(fusion(z, torch.ones(5, 1, dtype=torch.bool)), fusion.mix(feature))


def test_concat_by_hand():
    fusion, (z, present) = build("concat"), inputs()
    flat = torch.cat([(z * present.unsqueeze(-1)).reshape(12, 24), present.float()], dim=1)
    expected = torch.where(present.any(1, keepdim=True), fusion.net(flat), fusion.prior)
    torch.testing.assert_close(fusion(z, present), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_the_contract(kind, dtype):
    fusion, (z, present) = build(kind), inputs()
    dirty = torch.where(present.unsqueeze(-1), z, torch.nan)
    with torch.autocast("cpu", dtype=dtype):
        out = fusion(dirty, present)
    assert out.isfinite().all()
    torch.testing.assert_close(out.float(), fusion(z, present), rtol=0.1, atol=0.1)


def test_an_unknown_fusion_is_refused_with_the_nearest_name():
    with pytest.raises(ValidationError, match="expected one of concat, gated.*Did you mean 'gated'"):
        FusionSettings(kind="gatd")
