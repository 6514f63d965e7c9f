"""Every fusion under its contract: what is absent has no say, orders do not matter, and what the catalogue says is true."""

import io
from collections import Counter

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import ukbmm.models.multimodal  # noqa: F401, registers all fusions
from ukbmm.core import ModelError
from ukbmm.models.attention import Attention
from ukbmm.models.fusion import OPTIONS, Fusion, FusionSettings
from ukbmm.models.layers import FUSIONS

KINDS = ["bottleneck", "concat", "cross_attention", "film", "gated", "late", "low_rank", "mean", "product_of_experts",
         "shared_specific", "transformer"]  # fmt: skip
TOKENS = {"one token each": [1, 1, 1], "several tokens": [2, 1, 3]}
every_fusion = pytest.mark.parametrize("kind", KINDS)
any_tokens = pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)


def test_these_are_all_fusions():
    assert FUSIONS.names() == KINDS
    assert FusionSettings().kind == "transformer"


def inputs(tokens=(1, 1, 1), batch: int = 12, dim: int = 8, seed: int = 0):
    "Representations and a mask with every pattern of presence, the empty one included."
    torch.manual_seed(seed)
    modalities = len(tokens)
    patterns = torch.tensor([[bool(i >> m & 1) for m in range(modalities)] for i in range(2**modalities)])
    return torch.randn(batch, sum(tokens), dim), patterns.repeat(batch, 1)[:batch]


def build(kind: str, tokens=(1, 1, 1), dim: int = 8, **options) -> Fusion:
    "A fusion that has learned something: no parameter is what it started at."
    torch.manual_seed(1)
    fusion = FUSIONS[kind](len(tokens), FusionSettings(kind=kind, dim=dim, **options), tokens)
    for parameter in fusion.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape)
    return fusion.eval()


def absent_tokens(fusion: Fusion, present):
    return ~fusion.of_tokens(present)


# ------------------------------------------------------------------------------------------------ what is absent


@any_tokens
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -1e30])
@every_fusion
def test_junk_in_absent_slots_changes_no_output_and_gets_no_gradient(kind, junk, tokens):
    fusion, (z, present) = build(kind, tokens), inputs(tokens)
    absent = absent_tokens(fusion, present)
    dirty = z.masked_fill(absent.unsqueeze(-1), junk).requires_grad_()
    fusion.train()  # dropout included
    torch.manual_seed(3)
    clean = fusion(z, present)
    torch.manual_seed(3)
    out = fusion(dirty, present)
    assert torch.equal(out, clean) and out.isfinite().all()
    (out**2).sum().backward()
    assert (dirty.grad[absent] == 0).all() and (dirty.grad[~absent] != 0).any(dim=1).all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fusion.parameters())


@any_tokens
@every_fusion
def test_any_set_of_modalities_gives_an_answer_and_nobody_the_prior(kind, tokens):
    fusion, (z, present) = build(kind, tokens), inputs(tokens, batch=8)
    same = z[:1].expand(8, -1, -1)  # one person with each of the eight patterns
    out = fusion(same, present)
    assert out.isfinite().all() and torch.equal(out[0], fusion.prior)
    distances = torch.cdist(out, out) + torch.eye(8)
    assert distances.min() > 1e-4  # each modality matters, whatever else is there


@every_fusion
def test_a_batch_without_anything_trains_the_prior_and_nothing_else(kind):
    fusion, (z, _) = build(kind).train(), inputs()
    fusion(z * torch.nan, torch.zeros(12, 3, dtype=torch.bool)).sum().backward()
    reached = {name for name, p in fusion.named_parameters() if p.grad is not None and (p.grad != 0).any()}
    assert reached == {"prior"} and torch.equal(fusion.prior.grad, torch.full((8,), 12.0))
    assert all(p.grad is None or p.grad.isfinite().all() for p in fusion.parameters())


@every_fusion
def test_presence_itself_matters(kind):
    fusion, (z, _) = build(kind), inputs()
    zeros = z.clone()
    zeros[:, 1] = 0  # somebody whose representation happens to be zero is not somebody without one
    everything, without = torch.ones(12, 3, dtype=torch.bool), torch.tensor([[True, False, True]] * 12)
    assert not torch.allclose(fusion(zeros, everything), fusion(zeros, without))


# --------------------------------------------------------------------------------------------------------- orders


@any_tokens
@every_fusion
def test_people_are_fused_one_by_one_whatever_their_order(kind, tokens):
    fusion, (z, present) = build(kind, tokens), inputs(tokens)
    order = torch.from_numpy(np.random.default_rng(0).permutation(12))
    torch.testing.assert_close(fusion(z[order], present[order]), fusion(z, present)[order])
    torch.testing.assert_close(fusion(z[3:4], present[3:4]), fusion(z, present)[3:4])  # a batch of one


def moved(name: str, value, kind: str, order: list[int], dim: int = 8):
    "A parameter of a fusion, for modalities in another order."
    columns = [m * dim + d for m in order for d in range(dim)]
    flags = [len(order) * dim + m for m in order]
    if name in ("absent", "modality") or name.split(".")[0] in (
        "feature", "modulation", "factors", "opinion", "specific", "hidden", "answer"
    ):  # fmt: skip
        return value[order]
    if name in ("net.0.weight", "gate.0.weight") and kind in ("concat", "gated"):
        return value[:, columns + flags]
    if name in ("gate.3.weight", "gate.3.bias"):
        return value[columns]
    if name == "out.weight" and kind == "shared_specific":
        return value[:, columns]
    return value[order][:, order] if name == "louder" else value


def moved_name(name: str, kind: str, order: list[int]) -> str:
    "Where a parameter is after modalities were put in another order."
    if kind != "bottleneck" or not name.startswith("layers."):
        return name
    _, modality, rest = name.split(".", 2)
    return f"layers.{order.index(int(modality))}.{rest}"


@any_tokens
@every_fusion
def test_the_order_of_modalities_does_not_matter_if_parameters_go_with_them(kind, tokens):
    order = [2, 0, 1]
    options, others = ({"condition": 1}, {"condition": 2}) if kind == "film" else ({}, {})
    fusion, twin = build(kind, tokens, **options), build(kind, [tokens[m] for m in order], **others)
    state = {moved_name(name, kind, order): moved(name, value, kind, order) for name, value in fusion.state_dict().items()}  # fmt: skip
    twin.load_state_dict(state)
    z, present = inputs(tokens)
    if kind == "film":  # who conditions is the first by order where the chosen one is absent
        present[:, 1] = True
    parts = z.split(list(tokens), dim=1)
    there = torch.cat([parts[m] for m in order], dim=1)
    torch.testing.assert_close(twin(there, present[:, order]), fusion(z, present), rtol=1e-4, atol=1e-5)
    if kind != "mean":  # which has no parameters of modalities
        twin.load_state_dict(fusion.state_dict()) if kind != "film" else None
        assert kind == "film" or not torch.allclose(
            twin(there, present[:, order]), fusion(z, present), atol=1e-3
        )


@pytest.mark.parametrize("kind", ["transformer", "cross_attention", "bottleneck"])
def test_the_order_of_tokens_within_a_modality_is_for_the_encoder_to_say(kind):
    fusion, (z, present) = build(kind, [3, 1]), inputs([3, 1])
    torch.testing.assert_close(fusion(z[:, [2, 0, 1, 3]], present), fusion(z, present), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["transformer", "cross_attention", "bottleneck"])
def test_attention_reads_tokens_one_by_one(kind):
    fusion, (z, _) = build(kind, [2, 1]), inputs([2, 1])
    shift = torch.linspace(-2, 2, 8)
    same_mean = torch.cat([z[:, :1] + shift, z[:, 1:2] - shift, z[:, 2:]], dim=1)
    everything = torch.ones(12, 2, dtype=torch.bool)
    assert not torch.allclose(fusion(z, everything), fusion(same_mean, everything), atol=1e-3)


# --------------------------------------------------------------------------------------- machines, files, precision


@any_tokens
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_fusion
def test_half_precision_keeps_the_contract(kind, dtype, tokens):
    fusion, (z, present) = build(kind, tokens), inputs(tokens)
    dirty = z.masked_fill(absent_tokens(fusion, present).unsqueeze(-1), torch.nan).requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        out = fusion(dirty, present)
    expected = fusion(z, present)
    assert out.isfinite().all()
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
    out.float().sum().backward()
    assert dirty.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fusion.parameters())


@any_tokens
@every_fusion
def test_a_fusion_in_64_bits_stays_in_64_bits(kind, tokens):
    fusion, (z, present) = build(kind, tokens).double(), inputs(tokens)
    assert fusion(z.double(), present).dtype == torch.float64


@any_tokens
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@every_fusion
def test_a_fusion_in_16_bits_stays_in_16_bits(kind, dtype, training, tokens):
    fusion, (z, present) = build(kind, tokens, dropout=0.0), inputs(tokens)
    expected = fusion(z, present)
    out = fusion.to(dtype).train(training)(z.to(dtype), present)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), expected, rtol=0.1, atol=0.1 * expected.abs().max().item())
    out.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in fusion.parameters())


def small(kind: str) -> Fusion:
    "A fusion that is quickly compiled."
    return build(kind, [2, 1], **({"depth": 1} if "depth" in FUSIONS[kind].options else {}))


@every_fusion
def test_compiled_gives_the_same_values_and_gradients(kind):
    fusion, (z, present) = small(kind), inputs([2, 1])
    torch._dynamo.reset()
    compiled, found = torch.compile(fusion, backend="aot_eager", fullgraph=True), []
    for model in (fusion, compiled):
        one = z.clone().masked_fill(absent_tokens(fusion, present).unsqueeze(-1), torch.nan).requires_grad_()
        out = model(one, present)
        (out**2).sum().backward()
        found += [(out.detach(), one.grad)]
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@every_fusion
def test_exported_once_it_serves_any_batch(kind):
    fusion, (z, present) = small(kind), inputs([2, 1])
    batch = torch.export.Dim("batch", min=1, max=4096)
    program = torch.export.export(fusion, (z, present), dynamic_shapes=({0: batch}, {0: batch})).module()
    for rows in (slice(0, 12), slice(0, 5), slice(3, 4)):
        dirty = z[rows].masked_fill(absent_tokens(fusion, present[rows]).unsqueeze(-1), torch.nan)
        torch.testing.assert_close(program(dirty, present[rows]), fusion(z[rows], present[rows]))


@every_fusion
def test_saved_and_loaded_it_is_the_same(kind):
    fusion, (z, present) = build(kind), inputs()
    file = io.BytesIO()
    torch.save(fusion.state_dict(), file)
    file.seek(0)
    other = FUSIONS[kind](3, FusionSettings(kind=kind, dim=8)).eval()
    assert not torch.equal(other(z, present), fusion(z, present))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(z, present), fusion(z, present))


# --------------------------------------------------------------------------------------------------- what is stated


@any_tokens
@every_fusion
def test_shapes_are_as_documented(kind, tokens):
    for batch, dim in ((1, 4), (7, 16)):
        fusion, (z, present) = build(kind, tokens, dim), inputs(tokens, batch, dim)
        assert fusion(z, present).shape == (batch, dim)
        assert fusion.of_tokens(present).shape == (batch, sum(tokens))
        assert fusion.pooled(z).shape == (batch, len(tokens), dim)


STATED = [(tokens, dim, options) for tokens in ([1, 1, 1], [2, 1, 3], [5]) for dim, options in ((8, {}), (16, {"odd": 3}))]  # fmt: skip


@pytest.mark.parametrize(("tokens", "dim", "options"), STATED)
@every_fusion
def test_parameters_and_cost_are_as_stated(kind, tokens, dim, options):
    "Both formulas of the catalogue against what PyTorch counts."
    options = (
        {name: 3 for name in FUSIONS[kind].options if name not in ("heads", "condition")} if options else {}
    )
    fusion, (z, present) = build(kind, tokens, dim, **options), inputs(tokens, 4, dim)
    settings = FusionSettings(kind=kind, dim=dim, **options)
    names = {"M": len(tokens), "T": sum(tokens), "D": dim, "tokens": tokens}
    names |= {name: getattr(settings, name) for name in OPTIONS}
    assert fusion.n_parameters == eval(fusion.about.parameters, names)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        fusion(z, present)
    # the late fusion's and the low-rank sum's element-wise products are no matrix products
    assert counter.get_total_flops() == 2 * 4 * eval(fusion.about.cost, names)


@every_fusion
def test_the_catalogue_has_something_to_say(kind):
    about = FUSIONS[kind].about
    assert all(about) and any(mark in about.paper for mark in ("arXiv:", "doi:", "ICML"))


def test_an_unknown_fusion_is_refused_with_the_nearest_name():
    with pytest.raises(ValidationError, match="expected one of bottleneck, concat.*Did you mean 'gated'"):
        FusionSettings(kind="gatd")


@every_fusion
def test_an_option_that_a_fusion_does_not_have_is_refused(kind):
    for option in OPTIONS:
        if option in FUSIONS[kind].options:
            assert getattr(FusionSettings(kind=kind, **{option: 1}), option) == 1
        else:
            with pytest.raises(ValidationError, match=f"{kind} does not have the option {option}"):
                FusionSettings(kind=kind, **{option: 1})
    assert FusionSettings(**FusionSettings(kind=kind).model_dump()) == FusionSettings(kind=kind)


def test_a_width_that_heads_cannot_divide_is_refused():
    with pytest.raises(ValidationError, match="dim to be a multiple of heads, found 10 and 4"):
        FusionSettings(dim=10)
    assert FusionSettings(kind="concat", dim=10).dim == 10


def test_parts_that_do_not_fit_are_refused():
    with pytest.raises(ModelError, match="expected tokens of 2 modalities"):
        FUSIONS["mean"](2, tokens=[1])
    with pytest.raises(ModelError, match="expected tokens of 2 modalities"):
        FUSIONS["mean"](2, tokens=[1, 0])
    fusion, (z, present) = build("mean"), inputs()
    with pytest.raises(ModelError, match="expected 3 tokens of 3 modalities, found 2 and 3"):
        fusion(z[:, :2], present)


def test_a_fusion_of_ones_own_can_be_registered_and_named():
    @FUSIONS.register("only_the_first")
    class First(Fusion):
        def combine(self, z, present):
            return z[:, 0]

    try:
        fusion = FUSIONS[FusionSettings(kind="only_the_first").kind](2, FusionSettings(dim=4))
        assert fusion(torch.ones(1, 2, 4), torch.tensor([[True, False]])).tolist() == [[1.0] * 4]
    finally:
        del FUSIONS.entries["only_the_first"]


# ---------------------------------------------------------------------------------------------------- one by one


def test_gates_sum_to_one_over_what_is_present_and_are_zero_elsewhere():
    fusion, (z, present) = build("gated"), inputs()
    gates = fusion.gates(z * present.unsqueeze(-1), present)
    assert (gates[~present] == 0).all()
    torch.testing.assert_close(gates.sum(1), present.any(1).float()[:, None].expand(12, 8))


def test_gated_fusion_by_hand_with_one_modality():
    fusion, z = build("gated", [1]), torch.randn(5, 1, 8)
    feature = z[:, 0] @ fusion.feature.weight[0] + fusion.feature.bias[0]  # its gate can only be 1
    torch.testing.assert_close(fusion(z, torch.ones(5, 1, dtype=torch.bool)), fusion.mix(feature))


def test_concat_by_hand():
    fusion, (z, present) = build("concat"), inputs()
    flat = torch.cat([(z * present.unsqueeze(-1)).reshape(12, 24), present.float()], dim=1)
    expected = torch.where(present.any(1, keepdim=True), fusion.net(flat), fusion.prior)
    torch.testing.assert_close(fusion(z, present), expected)


def test_the_low_rank_product_equals_the_whole_tensor():
    "A map of the outer product of [z, 1] over modalities, written out, with the weights that the factors make."
    fusion, (z, _) = build("low_rank", rank=2), inputs()
    with_one = [torch.cat([z[:, m], torch.ones(12, 1)], dim=1) for m in range(3)]
    outer = torch.einsum("bi,bj,bk->bijk", *with_one)
    maps = torch.cat([fusion.factors.weight, fusion.factors.bias[:, None]], dim=1).unflatten(2, (2, 8))
    tensor = torch.einsum("r,ird,jrd,krd->ijkd", fusion.weight, *maps)
    expected = torch.einsum("bijk,ijkd->bd", outer, tensor) + fusion.bias
    torch.testing.assert_close(fusion(z, torch.ones(12, 3, dtype=torch.bool)), expected, rtol=1e-4, atol=1e-4)


def test_the_product_of_experts_equals_the_product_of_densities():
    "On a grid: multiply normal densities, the prior's among them, and take the mean."
    fusion = build("product_of_experts", dim=1)
    z, present = torch.tensor([[[0.4], [1.0], [-0.7]]]), torch.tensor([[True, False, True]])
    mean, sure = (part[0, :, 0].double() for part in fusion.opinion(z).chunk(2, dim=-1))
    grid = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    density = torch.exp(-0.5 * (grid - fusion.prior.double()) ** 2)
    for m in (0, 2):
        density *= torch.exp(-0.5 * nn.functional.softplus(sure[m]) * (grid - mean[m]) ** 2)
    expected = (grid * density).sum() / density.sum()
    assert fusion(z, present).item() == pytest.approx(expected.item(), abs=1e-5)


def test_late_fusion_mixes_nothing_and_the_others_do():
    mixed = {}
    for kind in KINDS:
        fusion, (z, _) = build(kind, [1, 1]), inputs([1, 1])
        everything = torch.ones(12, 2, dtype=torch.bool)
        other = z.roll(1, 0)

        def say(first, second, fusion=fusion, everything=everything):
            return fusion(torch.stack([first, second], dim=1), everything)

        change = say(z[:, 0], z[:, 1]) - say(other[:, 0], z[:, 1])
        elsewhere = say(z[:, 0], other[:, 1]) - say(other[:, 0], other[:, 1])
        mixed[kind] = (change - elsewhere).abs().max().item()
    additive = {kind for kind, size in mixed.items() if size < 1e-5}
    assert additive == {"late", "mean", "shared_specific"}  # what the last two add up, their heads mix
    assert [kind for kind in KINDS if FUSIONS[kind].linear_head] == ["late"]


def test_shared_features_stand_in_for_what_is_absent():
    fusion, (z, _) = build("shared_specific"), inputs()
    present = torch.tensor([[True, False, True]]).expand(12, 3)
    shared = fusion.shared(z)
    both = nn.functional.gelu(torch.cat([shared, fusion.specific(z)], dim=-1))
    feature = shared + fusion.project(both)
    common = (shared[:, 0] + shared[:, 2]) / 2
    expected = fusion.out(torch.cat([feature[:, 0], common, feature[:, 2]], dim=1))
    torch.testing.assert_close(fusion(z, present), expected)


def test_modulation_by_hand():
    fusion, (z, _) = build("film", condition=1), inputs()
    present = torch.tensor([[True, True, False], [True, False, True]] * 6)
    out = fusion(z, present)
    for i, (condition, other) in ((0, (1, 0)), (1, (0, 2))):
        scale, shift = (
            z[i, condition] @ fusion.modulation.weight[condition] + fusion.modulation.bias[condition]
        ).chunk(2)
        feature = z[i, other] @ fusion.feature.weight[other] + fusion.feature.bias[other]
        torch.testing.assert_close(out[i], fusion.mix((1 + scale) * feature + shift))


def test_attention_without_any_key_is_finite_forward_and_backward():
    torch.manual_seed(0)
    attention, keys = Attention(8, 2), torch.zeros(3, 4, 8, requires_grad=True)
    there = torch.tensor([[True] * 4, [False] * 4, [False, True, True, False]])
    out = attention(torch.randn(3, 2, 8), keys, there)
    out.sum().backward()
    assert out.isfinite().all() and keys.grad.isfinite().all()
    assert all(p.grad.isfinite().all() for p in attention.parameters())


def test_attention_equals_torchs_own():
    torch.manual_seed(0)
    ours, theirs = Attention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([ours.query.weight, ours.key_value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([ours.query.bias, ours.key_value.bias]))
        theirs.out_proj.load_state_dict(ours.out.state_dict())
    queries, keys = torch.randn(5, 3, 8), torch.randn(5, 4, 8)
    there = torch.rand(5, 4) < 0.6
    there[:, 0] = True
    expected, _ = theirs(queries, keys, keys, key_padding_mask=~there)
    torch.testing.assert_close(ours(queries, keys, there), expected)


def test_no_two_fusions_are_the_same():
    z, present = inputs()
    outs = [build(kind)(z, present) for kind in KINDS]
    assert max(Counter(round(float(out.sum()), 4) for out in outs).values()) == 1
