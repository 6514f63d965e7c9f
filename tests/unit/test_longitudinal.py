"""Encoders of visits and health records: GRU-D against a loop, packing against none, the mask contract, planted signals."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from ukbmm.biobank.store import ingest
from ukbmm.cohort.outcomes import RegressionOutcome, read_outcome
from ukbmm.core import ModelError
from ukbmm.data.batch import MultiModalBatch
from ukbmm.data.blocks import OutcomeBlock
from ukbmm.data.events import EventBlock, lanes_for
from ukbmm.data.loaders import fitted_loaders
from ukbmm.data.visits import VisitBlock, time_since_last
from ukbmm.models.fusion import ConcatFusion, FusionSettings
from ukbmm.models.heads import Head
from ukbmm.models.layers import ENCODERS
from ukbmm.models.longitudinal import (
    AttentionLayer,
    EventEncoder,
    EventTransformerSettings,
    GRUDEncoder,
    GRUDSettings,
    VisitTransformer,
)
from ukbmm.models.multimodal import MultiModalModel

pytestmark = pytest.mark.usefixtures("one_thread")

PATHS = torch.tensor([[0, 0, 0], [1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 3, 0], [5, 4, 3], [6, 0, 0]])
KINDS = ["grud", "visit_transformer", "event_transformer"]
DIM = 6


def visits(n: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    "A batch of visits: four of them, three quantities."
    generator = torch.Generator().manual_seed(seed)
    years = torch.rand(n, 4, generator=generator).mul(4).cumsum(1)
    years[:, 0] = 0
    years[:, 1:][torch.rand(n, 3, generator=generator) < 0.4] = torch.nan
    known = (torch.rand(n, 4, 3, generator=generator) < 0.6) & ~years.isnan()[..., None]
    value = torch.randn(n, 4, 3, generator=generator) * known
    return value, known.float(), time_since_last(known, years), years


def events(n: int, seed: int = 0, longest: int = 9) -> tuple[torch.Tensor, ...]:
    "A batch of histories of 0 to 9 events."
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, longest + 1, (n,), generator=generator)
    steps = torch.arange(longest + 1)
    there = (steps > 0) & (steps <= lengths[:, None])
    tokens = torch.randint(2, len(PATHS), there.shape, generator=generator) * there
    tokens[:, 0] = 1
    years = torch.rand(there.shape, generator=generator) * 20 * there
    times = torch.stack([(60 - years) * (tokens > 0), years], dim=2)
    lanes, used = lanes_for(lengths.numpy() + 1)
    sources = torch.randint(1, 4, there.shape, generator=generator) * there
    return tokens, times, sources, torch.from_numpy(lanes)[:, None] == torch.arange(used)


def learned(module: nn.Module, seed: int = 1) -> nn.Module:
    "The module with no parameter at zero."
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
    return module.eval()


def encoder_of(kind: str, n_outputs: int = 1) -> nn.Module:
    torch.manual_seed(0)
    inputs = PATHS if kind == "event_transformer" else 3
    return learned(ENCODERS[kind](inputs, DIM, n_outputs))


def batch_of(kind: str, n: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    return events(n, seed) if kind == "event_transformer" else visits(n, seed)


def encoded(encoder: nn.Module, x: tuple) -> torch.Tensor:
    return encoder(x, encoder.additive(x))


def part_of(kind: str, x: tuple, rows: torch.Tensor) -> tuple:
    "Some people of a batch, laid into lanes anew."
    some = [part[rows] for part in x]
    if kind == "event_transformer":
        lanes, used = lanes_for((some[0] > 0).sum(1).numpy())
        some[3] = torch.from_numpy(lanes)[:, None] == torch.arange(used)
    return tuple(some)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_gru_d_equals_a_loop_over_people_visits_and_the_papers_equations():
    encoder, x = encoder_of("grud"), visits(25)
    weights = {name: value.double().numpy() for name, value in encoder.state_dict().items()}
    value, mask, elapsed, years = (part.double().numpy() for part in x)
    score = encoder.additive(x)
    expected = []
    for i in range(25):
        state, last = np.zeros(encoder.width), np.zeros(3)
        for step in range(4):
            if np.isnan(years[i, step]):
                continue
            m, delta = mask[i, step], elapsed[i, step]
            fade = np.exp(
                -np.maximum(0, weights["cell.input_decay"] * delta + weights["cell.input_decay_bias"])
            )
            seen = np.where(m == 1, value[i, step], fade * last)
            state = state * np.exp(
                -np.maximum(0, weights["cell.state_decay.weight"] @ delta + weights["cell.state_decay.bias"])
            )
            both = (
                weights["cell.gates.weight"] @ np.concatenate([seen, m, state]) + weights["cell.gates.bias"]
            )
            update, reset = np.split(sigmoid(both), 2)
            new = np.tanh(
                weights["cell.candidate.weight"] @ np.concatenate([seen, m, reset * state])
                + weights["cell.candidate.bias"]
            )
            state, last = (1 - update) * state + update * new, np.where(m == 1, value[i, step], last)
        expected.append(weights["project.weight"] @ state + weights["project.bias"])
    found = encoder(x, score) - score @ encoder.from_score.weight.T
    np.testing.assert_allclose(found.detach().numpy(), expected, atol=1e-5)


def test_attention_equals_torchs_own_layer():
    torch.manual_seed(0)
    ours, theirs = AttentionLayer(8, 2, 0.0), nn.MultiheadAttention(8, 2, batch_first=True)
    ours.queries.weight, ours.queries.bias = theirs.in_proj_weight, theirs.in_proj_bias
    ours.out = theirs.out_proj
    z, allowed = torch.randn(3, 5, 8), torch.rand(3, 1, 5, 5) < 0.6
    allowed |= torch.eye(5, dtype=torch.bool)
    blocked = ~allowed.expand(3, 2, 5, 5).reshape(6, 5, 5)
    torch.testing.assert_close(
        ours.attend(z, allowed), theirs(z, z, z, attn_mask=blocked)[0], rtol=1e-4, atol=1e-5
    )


def test_packing_computes_the_same_as_everybody_alone_and_keeps_lanes_full():
    encoder, x = encoder_of("event_transformer"), events(40)
    whole = encoded(encoder, x)
    for i in range(40):
        length = int((x[0][i] > 0).sum())
        one = (*(part[i : i + 1, :length] for part in x[:3]), torch.ones(1, 1, dtype=torch.bool))
        torch.testing.assert_close(encoded(encoder, one)[0], whole[i], rtol=1e-4, atol=1e-5)
    assert (x[0] > 0).sum() / (x[3].shape[1] * x[0].shape[1]) > 0.9 > (x[0] > 0).float().mean()


@pytest.mark.parametrize("kind", KINDS)
def test_each_person_is_encoded_alike_in_any_company_and_order(kind):
    encoder, x = encoder_of(kind), batch_of(kind, 30)
    whole = encoded(encoder, x)
    for rows in (torch.randperm(30), torch.tensor([4]), torch.arange(3, 17), torch.tensor([5, 5, 2])):
        torch.testing.assert_close(
            encoded(encoder, part_of(kind, x, rows)), whole[rows], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_starts_at_zero_and_is_a_line_in_the_blocks_design(kind):
    x = batch_of(kind, 20)
    fresh = ENCODERS[kind](PATHS if kind == "event_transformer" else 3, DIM, 2)
    assert fresh.additive(x).abs().max() == 0 and fresh.additive(x).shape == (20, 2)
    design = torch.zeros(20, fresh.linear.in_features)
    for i in range(20):
        if kind == "event_transformer":
            for token in x[0][i, 1:].tolist():
                for node in PATHS[token].tolist():
                    if node:
                        design[i, node - 2] = 1
            continue
        for channel in range(3):
            measured = [step for step in range(4) if x[1][i, step, channel]]
            design[i, channel] = x[0][i, measured[-1], channel] if measured else 0
            design[i, 3 + channel] = not measured
    weights, offset = torch.randn(design.shape[1], 2), torch.tensor([0.5, -1.0])
    fresh.load_additive(weights, offset)
    torch.testing.assert_close(fresh.additive(x), design @ weights + offset, rtol=1e-4, atol=1e-5)


def whole_model() -> tuple[MultiModalModel, MultiModalBatch]:
    "All three encoders in one network, and a batch in which each is absent for some."
    torch.manual_seed(0)
    encoders = {kind: encoder_of(kind) for kind in KINDS}
    fusion = ConcatFusion(3, FusionSettings(kind="concat", dim=DIM))
    model = learned(MultiModalModel(encoders, fusion, Head(DIM, 1)))
    x = MultiModalBatch({kind: batch_of(kind, 24) for kind in KINDS})
    x["present"] = torch.rand(24, 3, generator=torch.Generator().manual_seed(3)) < 0.6
    x["present"][0] = torch.tensor([True, False, False])
    return model, x


def with_junk(x: MultiModalBatch, junk: float) -> tuple[MultiModalBatch, list[torch.Tensor]]:
    "The same batch with junk in absent slots; and its floating-point parts, to look at gradients."
    other, floats = MultiModalBatch(x), []
    for i, kind in enumerate(KINDS):
        parts = []
        for part in x[kind]:
            there = x["present"][:, i].view(-1, *[1] * (part.ndim - 1))
            # a whole number in an absent slot is any number that a table has a place for
            other_value = torch.tensor(junk if part.is_floating_point() else 1).to(part.dtype)
            parts.append(torch.where(there, part, other_value))
            if part.is_floating_point():
                parts[-1].requires_grad_()
                floats.append((i, parts[-1]))
        other[kind] = tuple(parts)
    return other, floats


@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
def test_what_stands_in_an_absent_slot_changes_nothing_and_gets_no_gradient(junk):
    model, x = whole_model()
    clean = model(x)
    other, floats = with_junk(x, junk)
    output = model(other)
    assert torch.equal(clean, output) and output.isfinite().all()
    output.sum().backward()
    for i, part in floats:
        if part.grad is not None:
            assert part.grad[~x["present"][:, i]].abs().sum() == 0
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_any_subset_is_possible_and_nobody_hears_of_anothers_absence():
    model, x = whole_model()
    for mask in range(8):
        other = MultiModalBatch(x)
        other["present"] = x["present"].clone()
        other["present"][5] = torch.tensor([bool(mask & 1), bool(mask & 2), bool(mask & 4)])
        output = model(other)
        assert output.isfinite().all()
        torch.testing.assert_close(output[torch.arange(24) != 5], model(x)[torch.arange(24) != 5])
    none = MultiModalBatch(x)
    none["present"] = torch.zeros_like(x["present"])
    assert model(none).unique().numel() == 1


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_kept_and_gradients_are_right(kind, tmp_path):
    encoder, x = encoder_of(kind), batch_of(kind, 12)
    torch.save(encoder.state_dict(), tmp_path / "w.pt")
    other = ENCODERS[kind](PATHS if kind == "event_transformer" else 3, DIM)
    other.load_state_dict(torch.load(tmp_path / "w.pt", weights_only=True))
    assert torch.equal(encoded(other.eval(), x), encoded(encoder, x))
    double = copy.deepcopy(encoder).double()
    floats = tuple(part.double() if part.is_floating_point() else part for part in x)
    point = floats[0] if kind != "event_transformer" else floats[1]

    def function(values):
        inputs = (values, *floats[1:]) if kind != "event_transformer" else (floats[0], values, *floats[2:])
        return double(inputs, double.additive(inputs).double())

    measured = floats[1] if kind != "event_transformer" else (floats[0] > 0)[..., None].double()
    direction = torch.randn_like(point) * measured
    point = point.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(point).square().sum(), point)
    step = 1e-6
    change = (
        function(point + step * direction).square().sum() - function(point - step * direction).square().sum()
    ) / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), change, rtol=1e-4, atol=1e-6)


class Both(nn.Module):
    "An encoder with its own score."

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: tuple) -> torch.Tensor:
        return encoded(self.encoder, x)


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_are_compiled_whole_and_exported_for_any_batch(kind):
    encoder, x = Both(encoder_of(kind)), batch_of(kind, 14)
    torch._dynamo.reset()
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager", dynamic=True)
    torch.testing.assert_close(compiled(x), encoder(x))
    other = batch_of(kind, 9, seed=5)
    torch.testing.assert_close(compiled(other), encoder(other))
    n = torch.export.Dim("n", min=2)
    if kind == "event_transformer":
        time, lane = torch.export.Dim("time", min=2), torch.export.Dim("lane", min=2)
        shapes = ({0: n, 1: time}, {0: n, 1: time}, {0: n, 1: time}, {0: n, 1: lane})
    else:
        shapes = ({0: n},) * 4
    program = torch.export.export(encoder, (x,), dynamic_shapes=(shapes,))
    torch.testing.assert_close(program.module()(other), encoder(other))


@pytest.mark.parametrize("kind", KINDS)
def test_sixteen_bits_give_nearly_the_same(kind):
    encoder, x = encoder_of(kind), batch_of(kind, 14)
    with torch.autocast("cpu", torch.bfloat16):
        half = encoded(encoder, x)
    assert half.isfinite().all()
    torch.testing.assert_close(half.float(), encoded(encoder, x), rtol=0.1, atol=0.1)


def test_what_cannot_be_built_is_refused():
    with pytest.raises(ModelError, match="a width that 4 heads divide"):
        EventEncoder(PATHS, settings=EventTransformerSettings(width=6))
    with pytest.raises(ModelError, match="at least one quantity"):
        GRUDEncoder(0)


def test_an_encoder_is_made_for_its_block_with_the_settings_given():
    block = VisitBlock([21001, 4080])
    encoder = GRUDEncoder.of(block, 7, 2, GRUDSettings(width=5))
    assert (encoder.width, encoder.linear.in_features, encoder.linear.out_features) == (5, 4, 2)
    assert encoder(visits_of_two(), torch.zeros(3, 2)).shape == (3, 7)
    for cls, of in ((GRUDEncoder, VisitBlock), (VisitTransformer, VisitBlock), (EventEncoder, EventBlock)):
        assert cls.blocks == (of,) and cls.n_tokens == 1 and cls.settings_class().kind in ENCODERS.names()


def visits_of_two() -> tuple[torch.Tensor, ...]:
    return tuple(part[..., :2] if part.ndim == 3 else part for part in visits(3))


# Planted signals: hospital records of invented people, one code before the index date decides one quantity, another after it decides another

N = 750


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    "HbA1c follows an infarction before the visit, cholesterol one after it; HDL how long ago a fracture was."
    folder, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    table = ["eid,34-0.0,52-0.0,53-0.0,30750-0.0,30690-0.0,30760-0.0"]
    hesin, diag = (
        ["eid\tins_index\tdsource\tepistart\tepiend\tadmidate\tdisdate"],
        ["eid\tins_index\tarr_index\tlevel\tdiag_icd9\tdiag_icd10"],
    )
    for i in range(N):
        eid, stays = 1_000_001 + i, []
        before, after, ago = rng.random() < 0.4, rng.random() < 0.4, rng.uniform(0.1, 10)
        stays += [(rng.uniform(0.1, 12), rng.choice(["I210", "I211", "I214", "I219"]))] if before else []
        stays += [(-rng.uniform(0.1, 8), rng.choice(["I210", "I211", "I214", "I219"]))] if after else []
        stays += [(ago, "S525")]
        stays += [
            (rng.uniform(-8, 12), rng.choice(["K573", "Z864", "J459", "N390"])) for _ in range(rng.poisson(3))
        ]
        for number, (years, code) in enumerate(stays):
            day = np.datetime64("2008-06-01") - np.timedelta64(int(years * 365.25), "D")
            hesin.append(f"{eid}\t{number}\tHES\t{day.astype(object):%d/%m/%Y}\t\t\t")
            diag.append(f"{eid}\t{number}\t0\t1\t\t{code}")
        noise = rng.normal(size=3) * 0.3
        values = 40 + 5 * (before + noise[0]), 5 + after + noise[1], 1.5 + 0.5 * (ago / 5 - 1 + noise[2])
        table.append(
            f"{eid},{1940 + i % 25},{1 + i % 12},2008-06-01," + ",".join(f"{value:.3f}" for value in values)
        )
    (folder / "t.csv").write_text("\n".join(table) + "\n")
    (folder / "hesin.txt").write_text("\n".join(hesin) + "\n")
    (folder / "hesin_diag.txt").write_text("\n".join(diag) + "\n")
    biobank = ingest(
        folder / "t.csv", folder / "b", records=[folder / "hesin.txt", folder / "hesin_diag.txt"]
    )
    train, test = np.arange(500), np.arange(500, N)
    return biobank, EventBlock(["diagnoses"], min_count=30).fit(biobank, train), train, test


def explained(planted, field: int, additive: bool = True, epochs: int = 12) -> float:
    "Share of the variance of a quantity that a network of health records alone explains in people it has not seen."
    biobank, block, train, test = planted
    target = OutcomeBlock(read_outcome(biobank, RegressionOutcome(field=field))).fit(biobank, train)
    dls = fitted_loaders({"hospital": block}, target, train, test, bs=50, device="cpu")
    torch.manual_seed(0)
    model = MultiModalModel({"hospital": EventEncoder.of(block, DIM, 1)}, ConcatFusion(1, FusionSettings(kind="concat", dim=DIM)), Head(DIM, 1))  # fmt: skip
    if not additive:
        model.encoders["hospital"].linear.requires_grad_(False)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(epochs):
        for x, y in dls.train:
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
    model.eval()
    with torch.no_grad():
        pairs = [(model(x), y) for x, y in dls.valid]
    output, y = (torch.cat(part)[:, 0] for part in zip(*pairs, strict=True))
    return 1 - float((output - y).square().mean() / y.var())


def test_a_record_before_the_index_date_is_learned_and_one_after_it_is_not(planted):
    attainable = 0.24 / (0.24 + 0.09)  # variance of a yes of four in ten, over that with the noise
    assert explained(planted, 30750) > 0.9 * attainable
    assert explained(planted, 30750, additive=False) > 0.8 * attainable
    assert explained(planted, 30690) < 0.05


def test_how_long_ago_something_was_is_learned_where_a_line_of_codes_sees_nothing(planted):
    _, block, train, _ = planted
    design = block.design(block.batch(torch.from_numpy(train)))
    fracture = block.describe()["name"].to_list().index("S525")
    assert fracture >= 0 and design.shape[1] == block.design_width
    assert explained(planted, 30760, epochs=25) > 0.5
