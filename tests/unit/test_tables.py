"""Encoders of tables: against the authors' packages, golden numbers and hand-worked ones; what must hold of every one."""

import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from ukbmm.biobank.store import ingest
from ukbmm.core import ModelError, seed_everything
from ukbmm.data.batch import blank_absent
from ukbmm.data.blocks import FieldChoice, PhenotypeBlock
from ukbmm.models.deep_tables import (
    MOST_TOKENS,
    FTSettings,
    FTTransformer,
    MemberNet,
    ResidualBlock,
    ResNetSettings,
    TableTokens,
    TabM,
    TabMSettings,
    TabularResNet,
)
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.heads import Head
from ukbmm.models.layers import ENCODERS, FUSIONS
from ukbmm.models.multimodal import MultiModalModel
from ukbmm.models.tabular import (
    PeriodicFeatures,
    PeriodicLinearNumbers,
    PeriodicNumbers,
    PiecewiseFeatures,
    PiecewiseLinearNumbers,
    PlainNumbers,
    TabularEncoder,
    TabularSettings,
    tabular_design,
)

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ["tabular_mlp", "tabular_resnet", "tabm", "ft_transformer"]
WAYS = ["plain", "piecewise", "periodic"]


# ---- the same as the authors' packages, weight for weight -------------------------------------------------------------


def wave(*shape: int, seed: int = 0) -> torch.Tensor:
    "Numbers that look random, and are the same everywhere."
    count = int(np.prod(shape))
    return (1.7 * torch.arange(count, dtype=torch.float64) + 0.9 * seed).sin().mul(0.6).float().reshape(shape)


def filled(module: nn.Module) -> nn.Module:
    "The module with weights that depend on their names and shapes alone."
    for i, (_, parameter) in enumerate(sorted(module.named_parameters())):
        parameter.data.copy_(wave(*parameter.shape, seed=i))
    return module.eval()


EDGES = torch.tensor([[-1.0, -0.5, 0.0, 1.0], [-2.0, -1.0, 1.0, 3.0]])
INPUTS = 3 * wave(4, 2, seed=5)
# Made by the authors' packages (rtdl_num_embeddings 0.0.12, rtdl_revisiting_models 0.0.2, tabm 0.0.3) from the weights of
# `wave`; where the packages are installed the tests below make them anew.
GOLDEN = {
    "piecewise": [-0.4176, -0.4179, 0.5253, -0.7279, 0.2781, 0.6562, 0.8225, 2.5867],
    "periodic": [0.0, 0.524, 0.2675, 0.0, 0.0, 1.0365, 0.0, 0.672],
    "resnet": [-1.2553, 0.5337, 0.4581, -1.1464, 0.4156, 0.5179, -1.2284, 0.4932],
    "tabm": [0.0977, 0.0686, -0.1153, 0.0776, 0.0764, -0.0973, 0.0932, 0.0715],
    "transformer": [-1.2388, -1.6542, 0.1226, -1.2399, -1.6576, 0.1203, -1.2059, -1.5964],
}


def check_golden(name: str, found: torch.Tensor) -> None:
    torch.testing.assert_close(found.detach().flatten()[:8], torch.tensor(GOLDEN[name]), atol=2e-4, rtol=1e-3)


def piecewise_by_loop(x: float, edges: list[float]) -> list[float]:
    "Equation 1 of the paper, with repeated edges taken out and put back as zeros."
    kept = sorted(set(edges))
    shares = []
    for t in range(1, len(kept)):
        if x < kept[t - 1] and t > 1:
            shares.append(0.0)
        elif x >= kept[t] and t < len(kept) - 1:
            shares.append(1.0)
        else:
            shares.append((x - kept[t - 1]) / (kept[t] - kept[t - 1]))
    found = iter(shares)
    return [next(found) if low < high else 0.0 for low, high in zip(edges, edges[1:], strict=False)]


@pytest.mark.parametrize(
    "edges", [[0.0, 1, 2, 4], [0.0, 0, 0, 1, 1, 3], [-1.0, -1, 2], [2.0, 2, 2], [-3.0, 5], [0.0, 1, 1]]
)
def test_the_piecewise_encoding_is_equation_1(edges):
    x = torch.linspace(-4, 6, 41)
    found = PiecewiseFeatures(torch.tensor([edges]))(x[:, None])[:, 0]
    expected = torch.tensor([piecewise_by_loop(value, edges) for value in x.tolist()])
    torch.testing.assert_close(found, expected)


def test_a_piecewise_encoding_by_hand():
    # parts 0-2, 2-3, 3-7: the number 2.25 has passed the first part and a quarter of the second
    features = PiecewiseFeatures(torch.tensor([[0.0, 2.0, 3.0, 7.0]]))
    assert features(torch.tensor([[2.25], [5.0], [-1.0], [11.0]]))[:, 0].tolist() == [
        [1.0, 0.25, 0.0],
        [1.0, 1.0, 0.5],
        [-0.5, 0.0, 0.0],
        [1.0, 1.0, 2.0],
    ]


def test_piecewise_encodings_equal_the_authors():
    theirs = pytest.importorskip("rtdl_num_embeddings")
    edges = [[0.0, 0, 0, 1, 1, 3], [-1.0, 0, 0.5, 1, 1.5, 2], [-1.0, -1, -1, -1, -1, 2]]
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) * 3
    bins = [torch.tensor(sorted(set(one))) for one in edges]
    ours = PiecewiseFeatures(torch.tensor(edges))(x)
    used = torch.tensor([[low < high for low, high in zip(one, one[1:], strict=False)] for one in edges])
    expected = theirs.PiecewiseLinearEncoding(bins)(x)
    torch.testing.assert_close(ours[:, used], expected, atol=1e-6, rtol=1e-6)


def test_quantile_edges_equal_the_authors_between_the_ends(table):
    theirs = pytest.importorskip("rtdl_num_embeddings")
    block, training = table.block, torch.from_numpy(table.rows)
    values = block.transform(block.batch(training))[0][:, 2]
    bins = theirs.compute_bins(values[~values.isnan()][:, None], 8)[0]
    torch.testing.assert_close(block.quantiles(8)[2, 1:-1], bins[1:-1])


def our_piecewise() -> PiecewiseLinearNumbers:
    ours = PiecewiseLinearNumbers(EDGES, 3)
    for i, parameter in enumerate((ours.weight, ours.bias, ours.bends)):
        parameter.data.copy_(wave(*parameter.shape, seed=i))
    return ours


def test_piecewise_vectors_equal_the_authors():
    theirs = pytest.importorskip("rtdl_num_embeddings").PiecewiseLinearEmbeddings(
        list(EDGES), 3, activation=False, version="B"
    )
    ours = our_piecewise()
    theirs.linear0.weight.data, theirs.linear0.bias.data = ours.weight.data, ours.bias.data
    theirs.linear.weight.data = ours.bends.data
    torch.testing.assert_close(ours(INPUTS), theirs(INPUTS))
    check_golden("piecewise", theirs(INPUTS))


def our_periodic() -> PeriodicLinearNumbers:
    return filled(PeriodicLinearNumbers(2, 3, PeriodicNumbers(frequencies=4)))


def test_periodic_vectors_equal_the_authors():
    theirs = pytest.importorskip("rtdl_num_embeddings").PeriodicEmbeddings(2, 3, n_frequencies=4, lite=False)
    ours = our_periodic()
    theirs.periodic.weight.data = ours.features.frequency.data
    theirs.linear.weight.data, theirs.linear.bias.data = ours.weight.data, ours.bias.data
    torch.testing.assert_close(ours(INPUTS), theirs(INPUTS))
    check_golden("periodic", theirs(INPUTS))


def our_resnet() -> TabularResNet:
    settings = ResNetSettings(width=6, layers=2, hidden=5)
    return filled(TabularResNet(2, [], dim=3, settings=settings))


NO_CODES = torch.zeros(4, 0, dtype=torch.long)


def test_the_residual_net_equals_the_authors_where_both_normalise_over_the_person():
    package = pytest.importorskip("rtdl_revisiting_models")
    ours = our_resnet()
    theirs = package.ResNet(d_in=5, d_out=3, n_blocks=2, d_block=6, d_hidden=5, d_hidden_multiplier=None,
                            dropout1=0.0, dropout2=0.0).eval()  # fmt: skip
    theirs.input_projection = ours.net[0]
    for block, mine in zip(theirs.blocks, ours.net[1:3], strict=True):
        assert isinstance(block.normalization, nn.BatchNorm1d)
        block.normalization, block.linear1, block.linear2 = mine.normalise, mine.widen, mine.narrow
    theirs.output.normalization, theirs.output.linear = ours.net[3], ours.net[5]
    row = torch.cat([INPUTS, torch.zeros(4, 3)], dim=1)
    found = ours((INPUTS, NO_CODES), torch.zeros(4, 1))
    torch.testing.assert_close(found, theirs(row))
    check_golden("resnet", theirs(row))


def our_tabm() -> TabM:
    return filled(TabM(2, [], dim=3, settings=TabMSettings(layers=[6, 6], members=4)))


def test_the_members_of_tabm_equal_the_authors():
    package = pytest.importorskip("tabm")
    ours = our_tabm()
    theirs = package.TabM(n_num_features=5, cat_cardinalities=[], d_out=3, n_blocks=2, d_block=6, dropout=0.0, k=4,
                          arch_type="tabm", start_scaling_init="random-signs").eval()  # fmt: skip
    for block, mine in zip(theirs.backbone.blocks, ours.net.layers, strict=True):
        block[0].weight.data, block[0].bias.data = mine.weight.data, mine.bias.data
        block[0].r.data, block[0].s.data = mine.scale_in.data, mine.scale_out.data
    theirs.output.weight.data, theirs.output.bias.data = ours.net.weight.data, ours.net.bias.data
    row = torch.cat([INPUTS, torch.zeros(4, 3)], dim=1)
    torch.testing.assert_close(ours.net.members(row), theirs(row))
    torch.testing.assert_close(ours((INPUTS, NO_CODES), torch.zeros(4, 1)), theirs(row).mean(dim=1))
    check_golden("tabm", theirs(row).mean(dim=1))


def our_transformer() -> FTTransformer:
    settings = FTSettings(width=8, heads=2, layers=3)
    return filled(FTTransformer(2, [3, 4], dim=3, settings=settings))


CODES = torch.tensor([[0, 3], [1, 2], [2, 0], [1, 1]])


def test_the_transformer_equals_the_authors():
    package = pytest.importorskip("rtdl_revisiting_models")
    ours = our_transformer()
    theirs = package.FTTransformer(n_cont_features=2, cat_cardinalities=[3, 4], d_out=3, n_blocks=3, d_block=8, attention_n_heads=2,
                                   attention_dropout=0.0, ffn_d_hidden=None, ffn_d_hidden_multiplier=4 / 3, ffn_dropout=0.0,
                                   residual_dropout=0.0).eval()  # fmt: skip
    embed = ours.embed
    theirs.cls_embedding.weight.data = ours.summary.data[0]
    theirs.cont_embeddings.weight.data = embed.numbers.weight.data
    theirs.cont_embeddings.bias.data = embed.numbers.bias.data
    for own, part in zip(theirs.cat_embeddings.embeddings, embed.levels.data.split([3, 4]), strict=True):
        own.weight.data = part
    theirs.cat_embeddings.bias.data = embed.codes.data
    for i, (block, mine) in enumerate(zip(theirs.backbone.blocks, ours.layers, strict=True)):
        if i:
            block["attention_normalization"] = mine.before
        attention = block["attention"]
        attention.W_q, attention.W_k = mine.attention.query, mine.attention.key
        attention.W_v, attention.W_out = mine.attention.value, mine.attention.out
        block["ffn_normalization"] = mine.between
        block["ffn"].linear1, block["ffn"].linear2 = mine.widen, mine.narrow
    theirs.backbone.output.normalization, theirs.backbone.output.linear = ours.out[0], ours.out[2]
    expected = theirs(INPUTS, CODES)
    torch.testing.assert_close(ours((INPUTS, CODES), torch.zeros(4, 1)), expected, atol=1e-5, rtol=1e-5)
    check_golden("transformer", expected)


def test_golden_numbers_of_the_authors_packages():
    zeros = torch.zeros(4, 1)
    check_golden("piecewise", our_piecewise()(INPUTS))
    check_golden("periodic", our_periodic()(INPUTS))
    check_golden("resnet", our_resnet()((INPUTS, NO_CODES), zeros))
    check_golden("tabm", our_tabm()((INPUTS, NO_CODES), zeros))
    check_golden("transformer", our_transformer()((INPUTS, CODES), zeros))


# ---- what must hold of every encoder -------------------------------------------------------------------------------


class Table:
    "A table of made-up people, and a block fitted to some of them."

    def __init__(self, folder):
        chance = np.random.default_rng(0)
        n = 200
        hours = np.where(chance.random(n) < 0.3, chance.choice(["-1", "-3", ""], n), chance.integers(0, 9, n))
        choices = chance.choice(["4,", "4,1", "-7,", "-3,", ","], n)
        smoking = chance.choice(["0", "1", "2", "-3", ""], n)
        sex, age = chance.integers(0, 2, n), chance.integers(40, 70, n)
        weight = np.round(chance.normal(75, 12, n), 1)
        lines = ["eid,1070-0.0,21003-0.0,21002-0.0,31-0.0,20116-0.0,6150-0.0,6150-0.1"]
        columns = zip(hours, age, weight, sex, smoking, choices, strict=True)
        lines += [f"{1_000_001 + i},{','.join(map(str, row))}" for i, row in enumerate(columns)]
        (folder / "own.csv").write_text("\n".join(lines) + "\n")
        self.biobank = ingest(folder / "own.csv", folder / "own.biobank")
        self.raw_hours, self.rows = hours, np.arange(150)
        fields = [1070, 21003, 21002, 31, 20116, 6150]
        self.recipe = PhenotypeBlock(fields, kinds=True)
        self.block = self.recipe.copy().fit(self.biobank, self.rows)

    def batch(self, rows):
        return self.block.transform(self.block.batch(torch.as_tensor(rows)))


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Table:
    return Table(tmp_path_factory.mktemp("table"))


def settings_of(kind: str, way: str = "plain", **more):
    small = {
        "tabular_mlp": {"layers": [12]},
        "tabular_resnet": {"width": 12, "hidden": 8},
        "tabm": {"layers": [12], "members": 4},
        "ft_transformer": {"width": 8, "heads": 2},
    }
    return ENCODERS[kind].settings_class(numbers=way, **{**small[kind], **more})


def encoder_of(table: Table, kind: str, way: str = "plain", seed: int = 0, block=None, **more):
    "An encoder that has learned something: no part of it is zero."
    seed_everything(seed, "weights")
    encoder = ENCODERS[kind].of(block or table.block, 6, 2, settings_of(kind, way, **more))
    generator = torch.Generator().manual_seed(seed + 1)
    for parameter in encoder.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return encoder.eval()


every_encoder = pytest.mark.parametrize(("kind", "way"), [(kind, way) for kind in KINDS for way in WAYS])


def test_every_encoder_of_tables_is_in_the_registry():
    tables = {name for name in ENCODERS.names() if PhenotypeBlock in getattr(ENCODERS[name], "blocks", ())}
    assert tables == set(KINDS)
    assert next(name for name in ENCODERS.entries if name in tables) == "tabular_mlp"  # the default
    assert all(ENCODERS[kind].settings_class().kind == kind for kind in KINDS)


@every_encoder
def test_shapes_are_those_that_are_documented(table, kind, way):
    encoder, x = encoder_of(table, kind, way), table.batch(range(7))
    score = encoder.additive(x)
    assert score.shape == (7, 2) and encoder.n_tokens == 1
    assert encoder(x, score).shape == (7, 6)
    if kind in ("tabm", "ft_transformer"):
        several = encoder_of(table, kind, way, tokens=2)
        assert several.n_tokens == 2 and several(x, score).shape == (7, 2, 6)


@every_encoder
def test_every_weight_learns_and_missing_values_give_no_nan(table, kind, way):
    encoder, x = encoder_of(table, kind, way).train(), table.batch(range(150))
    assert x[0].isnan().any() and (x[1] == 0).any()
    out = encoder(x, encoder.additive(x))
    assert out.isfinite().all()
    out.square().sum().backward()
    dead = {name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()}
    assert not dead
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


@every_encoder
def test_the_linear_score_is_the_design_times_the_weights(table, kind, way):
    encoder, x = encoder_of(table, kind, way), table.batch(range(50))
    design = tabular_design(*x, table.block.levels.sizes)
    weights, offset = torch.randn(design.shape[1], 2), torch.tensor([0.5, -2.0])
    encoder.load_additive(weights, offset)
    torch.testing.assert_close(encoder.additive(x), design @ weights + offset, atol=1e-5, rtol=1e-4)
    fresh = ENCODERS[kind].of(table.block, 6, 2, settings_of(kind, way))
    assert not fresh.additive(x).any()


@every_encoder
def test_one_person_alone_is_encoded_as_in_a_crowd_in_any_order(table, kind, way):
    encoder, x = encoder_of(table, kind, way), table.batch(range(40))
    score = encoder.additive(x)
    together = encoder(x, score)
    alone = encoder(tuple(part[3:4] for part in x), score[3:4])
    torch.testing.assert_close(alone, together[3:4], atol=1e-5, rtol=1e-4)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    shuffled = encoder(tuple(part[order] for part in x), score[order])
    torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=1e-4)
    encoder.train()(tuple(part[:1] for part in x), score[:1]).sum().backward()  # a batch of one trains


def junk_in(x: tuple, absent: torch.Tensor, number: float) -> tuple:
    return torch.where(absent[:, None], number, x[0]), torch.where(absent[:, None], 1, x[1])


@every_encoder
@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e20])
def test_what_stands_in_absent_slots_changes_no_output_and_no_gradient(table, kind, way, junk):
    encoders = {name: encoder_of(table, kind, way, seed) for seed, name in enumerate(("a", "b"))}
    fusion = FUSIONS["concat"](2, FusionSettings(kind="concat", dim=6))
    model = MultiModalModel(encoders, fusion, Head(6, 2)).eval()
    model.head.net[-1].weight.data.normal_(generator=torch.Generator().manual_seed(0))
    rows = torch.arange(30)
    present = torch.stack([rows % 3 != 0, rows % 3 != 1], dim=1)
    outputs, gradients = [], []
    for number in (0.0, junk):
        x = {name: junk_in(table.batch(rows), ~present[:, i], number) for i, name in enumerate("ab")}
        leaves = [part.requires_grad_() for part, _ in x.values()]
        model.zero_grad()
        out = model({**x, "present": present})
        out.square().mean().backward()
        outputs.append(out)
        gradients.append([p.grad.clone() for p in model.parameters()])
        for i, leaf in enumerate(leaves):
            assert not leaf.grad[~present[:, i]].any() and leaf.grad[present[:, i]].any()
    assert torch.equal(*outputs) and outputs[0].isfinite().all()
    assert all(torch.equal(first, second) for first, second in zip(*gradients, strict=True))
    assert outputs[0].std() > 1e-4


def test_blanks_of_absent_people_move_nobody_else_while_training(table):
    # a normalisation over the batch would: the reason for one over the person
    encoder = encoder_of(table, "tabular_resnet", dropout=0.0).train()
    x = table.batch(range(20))
    few = encoder(x, torch.zeros(20, 2))
    blank = blank_absent(x, torch.zeros(20, dtype=torch.bool))
    many = encoder(tuple(torch.cat(pair) for pair in zip(x, blank, strict=True)), torch.zeros(40, 2))
    torch.testing.assert_close(many[:20], few)


@every_encoder
def test_saved_weights_make_the_same_encoder_edges_included(table, kind, way, tmp_path):
    encoder, x = encoder_of(table, kind, way), table.batch(range(20))
    torch.save(encoder.state_dict(), tmp_path / "weights.pt")
    other = encoder_of(table, kind, way, seed=7)
    if way == "piecewise":
        numbers = other.embed.numbers if kind == "ft_transformer" else other.numbers
        numbers.features.edges += 0.3  # as if it was made for another fold
    assert not torch.equal(other(x, other.additive(x)), encoder(x, encoder.additive(x)))
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True))
    assert torch.equal(other(x, other.additive(x)), encoder(x, encoder.additive(x)))
    twin = copy.deepcopy(encoder)
    assert torch.equal(twin(x, twin.additive(x)), encoder(x, encoder.additive(x)))


@every_encoder
def test_16_bits_run_and_stay_close(table, kind, way):
    encoder, x = encoder_of(table, kind, way), table.batch(range(60))
    exact = encoder(x, encoder.additive(x))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = encoder(x, encoder.additive(x))
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)
    half.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in encoder.parameters() if p.grad is not None)


@every_encoder
def test_it_compiles_in_one_piece(table, kind, way):
    encoder, x = encoder_of(table, kind, way), table.batch(range(20))
    torch.compiler.reset()
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    score = encoder.additive(x)
    torch.testing.assert_close(compiled(x, score), encoder(x, score), atol=1e-5, rtol=1e-4)


@every_encoder
def test_it_can_be_exported_for_batches_of_any_size(table, kind, way):
    encoder, x = encoder_of(table, kind, way), table.batch(range(20))
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0: batch}, {0: batch})
    program = torch.export.export(encoder, (x, encoder.additive(x)), dynamic_shapes=(shapes, {0: batch}))
    for rows in (range(20), range(50), range(5, 6)):
        x = table.batch(rows)
        score = encoder.additive(x)
        torch.testing.assert_close(program.module()(x, score), encoder(x, score), atol=1e-5, rtol=1e-4)


@every_encoder
def test_missing_zero_and_why_are_told_apart(table, kind, way):
    encoder = encoder_of(table, kind, way)
    names = table.block.number_names
    refused = names.index("Time spent watching television (TV): prefer not to answer")
    numbers = torch.zeros(3, len(names))
    numbers[1:, 0] = torch.nan
    numbers[2, refused] = 1.0
    x = numbers, torch.ones(3, 2, dtype=torch.long)
    zero, missing, said = encoder(x, torch.zeros(3, 2))
    assert (zero - missing).abs().max() > 1e-3 and (missing - said).abs().max() > 1e-3


@every_encoder
def test_a_missing_number_says_the_same_wherever_it_would_have_been(table, kind, way):
    # the mean that fills it is not taken for a value: where it lies among the edges does not matter
    if way == "plain":
        pytest.skip("a plain number that is missing is 0, which is no feature")
    encoder = encoder_of(table, kind, way)
    x = torch.full((1, len(table.block.number_names)), torch.nan), torch.ones(1, 2, dtype=torch.long)
    before = encoder(x, torch.zeros(1, 2))
    part = encoder.embed.numbers if kind == "ft_transformer" else encoder.numbers
    for parameter in part.parameters():
        parameter.data += 1.0
    assert torch.equal(encoder(x, torch.zeros(1, 2)), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("fields", "numbers"), [([21003], 1), ([31, 20116], 0), ([6150], 2)])
def test_numbers_codes_or_choices_alone_can_be_encoded(table, kind, way, fields, numbers):
    block = PhenotypeBlock(fields).fit(table.biobank, table.rows)
    assert len(block.number_names) == numbers
    encoder = encoder_of(table, kind, way, block=block)
    x = block.transform(block.batch(torch.arange(9)))
    out = encoder(x, encoder.additive(x))
    assert out.shape == (9, 6) and out.isfinite().all() and out.std(dim=0).max() > 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_of_nothing_is_refused(kind):
    with pytest.raises(ModelError, match="numbers or codes, found neither"):
        ENCODERS[kind](0, [])


def test_the_seed_decides_the_weights(table):
    for kind in KINDS:
        first, again, other = (encoder_of(table, kind, "periodic", seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert any(not torch.equal(first[name], other[name]) for name in first)


# ---- one by one -----------------------------------------------------------------------------------------------------


def test_tokens_are_inputs_and_reasons_belong_to_theirs(table):
    block = table.block
    encoder = encoder_of(table, "ft_transformer")
    assert encoder.embed.n_tokens == 6 == len(block.settings.fields)
    reason = block.number_names.index("Smoking status: prefer not to answer")
    x = torch.zeros(2, len(block.number_names)), torch.ones(2, 2, dtype=torch.long)
    x[0][1, reason] = 1.0
    tokens = encoder.embed(x[0], torch.zeros_like(x[0]), x[1])
    changed = (tokens[0] != tokens[1]).any(dim=1).nonzero().flatten().tolist()
    assert changed == [3 + block.code_names.index("Smoking status")]


def test_the_order_of_columns_does_not_matter_to_attention():
    torch.manual_seed(0)
    encoder = FTTransformer(4, [], dim=5, settings=FTSettings(width=8, heads=2)).eval()
    x, order = torch.randn(6, 4), torch.tensor([2, 0, 3, 1])
    none = torch.zeros(6, 0, dtype=torch.long)
    expected = encoder((x, none), torch.zeros(6, 1))
    for vectors in (encoder.embed.numbers.weight, encoder.embed.numbers.bias, encoder.embed.missing):
        vectors.data = vectors.data[order]
    torch.testing.assert_close(encoder((x[:, order], none), torch.zeros(6, 1)), expected)


def test_too_many_inputs_for_attention_are_refused_with_a_remedy():
    FTTransformer(MOST_TOKENS, [], settings=FTSettings(width=8, layers=1))
    with pytest.raises(
        ModelError, match=r"at most 1,000 inputs, found 1,001\. Take kind: tabm or tabular_resnet"
    ):
        FTTransformer(MOST_TOKENS - 1, [3, 3])


def test_a_wide_table_can_be_encoded_in_a_row():
    encoder = TabM(5000, [], dim=4, settings=TabMSettings(layers=[8], members=2))
    x = torch.randn(3, 5000), torch.zeros(3, 0, dtype=torch.long)
    assert encoder(x, encoder.additive(x)).shape == (3, 4)


def test_tokens_of_tabm_are_means_of_equal_parts_of_its_members():
    torch.manual_seed(0)
    net = MemberNet([5, 7, 3], n_members=6, tokens=2).eval()
    x = torch.randn(4, 5)
    members = net.members(x)
    expected = torch.stack([members[:, :3].mean(1), members[:, 3:].mean(1)], dim=1)
    torch.testing.assert_close(net(x), expected)


def test_members_begin_with_signs_or_with_weights_where_numbers_are_vectors():
    torch.manual_seed(0)
    signs = TabM(3, [4]).net.layers[0].scale_in
    assert set(signs.flatten().tolist()) == {1.0, -1.0}
    weights = TabM(3, [4], settings=TabMSettings(numbers="periodic")).net.layers[0].scale_in
    assert weights.flatten().unique().numel() > 50
    assert (weights[:, :8] == weights[:, :1]).all()  # one for the whole vector of a number
    later = TabM(3, [4]).net.layers[1]
    assert (later.scale_in == 1).all() and (later.scale_out == 1).all()


def test_a_residual_block_adds():
    torch.manual_seed(0)
    block, x = ResidualBlock(4, 6).eval(), torch.randn(3, 4)
    normal = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    hidden = (normal @ block.widen.weight.T + block.widen.bias).clamp(min=0)
    torch.testing.assert_close(block(x), x + hidden @ block.narrow.weight.T + block.narrow.bias)


def test_waves_have_their_scale():
    torch.manual_seed(0)
    frequency = PeriodicFeatures(200, 50, scale=0.2).frequency
    assert frequency.std().item() == pytest.approx(0.2, rel=0.05) and frequency.abs().max() <= 0.6


def test_the_piecewise_way_starts_as_a_line_and_needs_the_edges_of_its_columns():
    x = torch.linspace(-5, 5, 11)[:, None].expand(-1, 2)
    vectors = PiecewiseLinearNumbers(EDGES, 4)(x)
    torch.testing.assert_close(vectors.diff(dim=0), vectors[1:2].sub(vectors[:1]).expand(10, -1, -1))
    with pytest.raises(ModelError, match="the edges of 3 columns, found those of 2"):
        TabularEncoder(3, [], settings=TabularSettings(numbers="piecewise"), edges=EDGES)


@pytest.mark.parametrize(
    ("settings", "values", "message"),
    [
        (TabularSettings, {"numbers": "waves"}, "expected tags"),
        (TabularSettings, {"numbers": {"kind": "plain", "bins": 4}}, "Extra inputs"),
        (TabularSettings, {"kind": "tabm"}, "tabular_mlp"),
        (TabMSettings, {"members": 8, "tokens": 3}, "multiple of tokens"),
        (TabMSettings, {"layers": []}, "at least 1"),
        (FTSettings, {"width": 10, "heads": 4}, "multiple of heads"),
        (FTSettings, {"number_width": 4}, "Extra inputs"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, values, message):
    with pytest.raises(ValidationError, match=message):
        settings(**values)


def test_table_tokens_without_anything_but_choices():
    tokens = TableTokens(0, [], yes_no=[0, 0, 1], width=4, numbers=PlainNumbers())
    made = tokens(torch.ones(2, 3), torch.zeros(2, 3), torch.zeros(2, 0, dtype=torch.long))
    torch.testing.assert_close(made[0, 0], tokens.choices[0] + tokens.yes[0] + tokens.yes[1])
    assert made.shape == (2, 2, 4)


# ---- what a block tells encoders ------------------------------------------------------------------------------------


def test_kinds_of_missing_are_packed_in_bits_and_come_back(table):
    block, raw = table.block, np.asarray(table.raw_hours)
    numbers = table.batch(range(200))[0].numpy()
    title = "Time spent watching television (TV)"
    for code, kind in (("-1", "do not know"), ("-3", "prefer not to answer")):
        column = numbers[:, block.number_names.index(f"{title}: {kind}")]
        assert (column == (raw == code)).all()
    choices = block.number_names.index("Vascular/heart problems diagnosed by doctor: prefer not to answer")
    cleaned = table.biobank.clean(["p6150_i0"])["p6150_i0"].kinds.to_numpy()
    assert (numbers[:, choices] == (cleaned == 3)).all()
    assert len(block.flags) == 4  # two of the hours, one of smoking, one of the choices: never a bare "empty"
    assert block._packed.bits.shape[1] == 2  # a byte of choices, a byte of kinds


def test_kinds_are_kept_where_enough_training_rows_have_them(table):
    few = np.flatnonzero(np.asarray(table.raw_hours) != "-3")
    only = np.append(few, np.flatnonzero(np.asarray(table.raw_hours) == "-3")[:3])
    some = PhenotypeBlock([1070, 21003], kinds=True, min_count=4).fit(table.biobank, np.sort(only))
    assert [kind for _, kind in some.flags] == [2]
    loose = PhenotypeBlock([1070, 21003], kinds=True, min_count=3).fit(table.biobank, np.sort(only))
    assert [kind for _, kind in loose.flags] == [2, 3]


def test_a_block_without_kinds_is_as_it_was(table):
    fields = [1070, 21003, 21002, 31, 20116, 6150]
    plain = PhenotypeBlock(fields).fit(table.biobank, table.rows)
    assert plain._raw.kinds == {} and plain.flags == []
    expected, found = table.batch(range(200)), plain.transform(plain.batch(torch.arange(200)))
    torch.testing.assert_close(found[0], expected[0][:, : found[0].shape[1]], equal_nan=True)
    assert plain.number_names == table.block.number_names[: len(plain.number_names)]
    assert plain.number_inputs == [0, 1, 2, 5, 5]
    assert table.block.number_inputs == [0, 1, 2, 5, 5, 0, 0, 4, 5]


def test_inputs_that_are_left_out_take_their_kinds_along(table):
    hours = FieldChoice(field=1070)
    block = PhenotypeBlock([hours, 21003, 31], kinds=True, drop_sparse=0.1).fit(table.biobank, table.rows)
    assert block.number_names == ["Age when attended assessment centre"] and block.flags == []


def test_edges_are_those_of_the_training_rows_and_of_nobody_else(table):
    block = table.block
    values = block._packed.numbers.float()
    edges = block.quantiles(4)
    for i in range(3):
        known = values[:150, i][~values[:150, i].isnan()].numpy()
        tail = 10 / len(known)
        expected = np.quantile(known, [tail, 0.25, 0.5, 0.75, 1 - tail])
        np.testing.assert_allclose(edges[i], expected, rtol=1e-5)
        assert (known <= edges[i, 0].item()).sum() >= 10 and (known >= edges[i, -1].item()).sum() >= 10
    block = copy.copy(block)
    block._packed = block._packed._replace(numbers=block._packed.numbers.clone())
    block._packed.numbers[150:] = 50.0
    assert torch.equal(block.quantiles(4), edges)


def test_a_number_that_nobody_has_or_all_share_has_no_parts(tmp_path):
    lines = ["eid,21003-0.0,21002-0.0", *(f"{1_000_001 + i},50," for i in range(40)), "1000041,50,80"]
    (tmp_path / "own.csv").write_text("\n".join(lines) + "\n")
    biobank = ingest(tmp_path / "own.csv", tmp_path / "own.biobank")
    block = PhenotypeBlock([21003, 21002]).fit(biobank, np.arange(40))
    assert not block.quantiles(4).any()
    encoder = TabularEncoder.of(block, 4, 1, TabularSettings(numbers="piecewise"))
    x = block.transform(block.batch(torch.arange(41)))
    assert encoder(x, encoder.additive(x)).isfinite().all()


# ---- does it learn --------------------------------------------------------------------------------------------------


def train(encoder: nn.Module, x: tuple, outcome: torch.Tensor, epochs: int, lr: float = 5e-3) -> nn.Module:
    optimiser, zeros = torch.optim.AdamW(encoder.parameters(), lr=lr), torch.zeros(len(outcome), 1)
    encoder.train()
    for _ in range(epochs):
        for some in torch.randperm(len(outcome)).split(100):
            found = encoder(tuple(part[some] for part in x), zeros[some])[:, 0]
            (found - outcome[some]).square().mean().backward()
            optimiser.step()
            optimiser.zero_grad()
    return encoder.eval()


def explained(encoder: nn.Module, x: tuple, truth: torch.Tensor) -> float:
    with torch.no_grad():
        found = encoder(x, torch.zeros(len(truth), 1))[:, 0]
    return 1 - float((found - truth).square().mean() / truth.var())


def bent(n: int, seed: int) -> tuple[tuple, torch.Tensor]:
    "Numbers whose effect no line sees: a wave of the first, both ends of the second."
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(n, 6, generator=generator)
    return (numbers, torch.zeros(n, 0, dtype=torch.long)), (4 * numbers[:, 0]).sin() + (
        numbers[:, 1].abs() > 1.2
    ).float()


@pytest.mark.parametrize("kind", KINDS)
def test_what_bends_is_learned_better_piece_by_piece_and_as_waves(kind):
    x, truth = bent(1500, 0)
    fresh, expected = bent(1500, 1)
    noise = 0.3 * torch.randn(1500, generator=torch.Generator().manual_seed(2))
    edges = torch.quantile(x[0], torch.linspace(0, 1, 17), dim=0).T
    line = torch.linalg.lstsq(torch.cat([x[0], torch.ones(1500, 1)], 1), (truth + noise)[:, None]).solution
    seen = (
        1 - ((torch.cat([fresh[0], torch.ones(1500, 1)], 1) @ line)[:, 0] - expected).var() / expected.var()
    )
    assert seen < 0.1  # a linear model sees next to nothing
    found = {}
    for way, numbers in {**dict.fromkeys(WAYS), "periodic": {"kind": "periodic", "scale": 0.3}}.items():
        seed_everything(1, "bent")
        settings = settings_of(kind, numbers or way)
        encoder = ENCODERS[kind](6, [], 1, settings=settings, edges=edges)
        found[way] = explained(train(encoder, x, truth + noise, 6, 1e-2), fresh, expected)
    assert found["piecewise"] > found["plain"] + 0.1 and found["periodic"] > found["plain"] + 0.1, found


@pytest.mark.parametrize("kind", KINDS)
def test_why_a_value_is_missing_is_learned_where_it_is_told(table, kind):
    outcome = torch.from_numpy((np.asarray(table.raw_hours) == "-3").astype(np.float32))
    found = {}
    for kinds in (False, True):
        block = PhenotypeBlock([1070, 21003], kinds=kinds, min_count=2).fit(table.biobank, np.arange(200))
        seed_everything(1, "kinds")
        encoder = ENCODERS[kind].of(block, 1, 1, settings_of(kind))
        x = block.transform(block.batch(torch.arange(200)))
        found[kinds] = explained(train(encoder, x, outcome, 60, 1e-2), x, outcome)
    assert found[True] > 0.85 and found[False] < 0.7, found
