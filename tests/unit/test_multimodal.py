"""The whole network: the mask contract, the ridge start, 16 bits."""

import io
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from ukbmm.cohort.cohort import define_cohort
from ukbmm.cohort.outcomes import BinaryOutcome, RegressionOutcome, read_outcome
from ukbmm.cohort.splits import KFold, split_cohort
from ukbmm.core import DataError, ModelError
from ukbmm.data.batch import MultiModalBatch
from ukbmm.data.blocks import OutcomeBlock, PhenotypeBlock, SNPBlock
from ukbmm.data.loaders import fitted_loaders
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.genotype import GenotypeSettings
from ukbmm.models.heads import Head, loss_for
from ukbmm.models.layers import ENCODERS, FUSIONS
from ukbmm.models.losses import MulticlassLoss
from ukbmm.models.multimodal import (
    ModelSettings,
    MultiModalModel,
    build_encoder,
    build_model,
    hide_modalities,
)
from ukbmm.models.ridge import cross_fit
from ukbmm.models.tabular import TabularSettings

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = FUSIONS.names()


def test_whoever_makes_a_learner_has_every_encoder_fusion_and_loss_that_is_written_anywhere(repository):
    "In a process that has imported nothing else; names are those that the sources register."
    sources = "\n".join(path.read_text() for path in (repository / "ukbmm" / "models").glob("*.py"))
    kinds = ("ENCODERS", "FUSIONS", "LOSSES")
    written = {kind: sorted(re.findall(rf'@{kind}\.register\("(\w+)"\)', sources)) for kind in kinds}
    show = "import json, ukbmm.training.learner; from ukbmm.models.layers import ENCODERS, FUSIONS; from ukbmm.models.losses import LOSSES; "
    show += "print(json.dumps({kind: globals()[kind].names() for kind in ('ENCODERS', 'FUSIONS', 'LOSSES')}))"
    done = subprocess.run([sys.executable, "-c", show], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == written and len(written["ENCODERS"]) >= 8


def prepare(biobank, definition):
    "Loaders of a fold, a ridge regression, and the rows to test on."
    outcome = read_outcome(biobank, definition)
    split = split_cohort(define_cohort(biobank, outcome), biobank, KFold(folds=4, inner=3), 0)
    rows = split.development(0)
    blocks = {"lifestyle": PhenotypeBlock([31, 21003, 20116]), "blood": PhenotypeBlock([30690, 30870]),
              "snps": SNPBlock()}  # fmt: skip
    blocks = {name: block.fit(biobank, rows) for name, block in blocks.items()}
    target = OutcomeBlock(outcome).fit(biobank, rows)
    dls = fitted_loaders(blocks, target, split.train(0, 0), split.valid(0, 0), bs=128, device="cpu")
    linear = cross_fit(blocks, target, rows, [split.valid(0, i) for i in range(3)], (3.0,))
    return dls, linear, split.test(0)


@pytest.fixture(scope="module")
def study(biobank):
    return prepare(biobank, RegressionOutcome(field=30750))


def network(dls, kind: str = "transformer", **settings):
    "A network that has learned something: no part of it is zero."
    model = build_model(dls.blocks, ModelSettings(fusion=FusionSettings(kind=kind), **settings), seed=1)
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def with_gaps(dls) -> tuple:
    "The first batch of people of whom some lack blood, and some SNPs."
    return next((x, y) for x, y in dls.train if (~x["present"])[:, 1:].any(dim=0).all())


def with_junk(x, junk: float, requires_grad: bool = False):
    "The same batch with junk in the slots of what is absent."
    dirty = dict(x)
    for i, name in enumerate(x.modalities):
        absent = ~x["present"][:, i, None]
        if isinstance(x[name], tuple):
            numbers, levels = x[name]
            dirty[name] = (torch.where(absent, junk, numbers), torch.where(absent, 1, levels))
        else:
            dirty[name] = torch.where(absent, junk, x[name])
            dirty[name].requires_grad_(requires_grad)
    return dirty


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), 1e20])
@pytest.mark.parametrize("kind", KINDS)
def test_junk_in_absent_slots_changes_no_prediction_and_no_gradient(study, kind, junk):
    dls, model = study[0], network(study[0], kind)
    x, y = with_gaps(dls)
    absent = ~x["present"]
    gradients = []
    for batch in (x, with_junk(x, junk, requires_grad=True)):
        model.zero_grad()
        out = model(batch)
        ((out - y) ** 2).mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
        if batch is x:
            clean = out
    assert torch.equal(out, clean) and out.isfinite().all()
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    reached = batch["snps"].grad
    assert (reached[absent[:, 2]] == 0).all() and (reached[~absent[:, 2]] != 0).any()


def test_junk_in_absent_scores_of_a_linear_model_changes_nothing(study):
    dls, model = study[0], network(study[0])
    x, _ = with_gaps(dls)
    scores = torch.randn(len(x["row"]), 3, 1, generator=torch.Generator().manual_seed(0))
    dirty = torch.where(x["present"].unsqueeze(-1), scores, torch.nan)
    assert torch.equal(model({**x, "additive": scores}), model({**x, "additive": dirty}))


def test_values_of_a_present_modality_do_change_the_prediction(study):
    dls, model = study[0], network(study[0])
    x, _ = with_gaps(dls)
    changed = {**x, "snps": -x["snps"]}
    have = x["present"][:, 2]
    moved = (model(changed) != model(x))[:, 0]
    assert moved[have].all() and not moved[~have].any()


@pytest.mark.parametrize("kind", KINDS)
def test_people_are_predicted_one_by_one_whatever_their_order(study, kind):
    model = network(study[0], kind)
    x, _ = study[0].train.one_batch()
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(x["row"])))
    shuffled = {name: tuple(part[order] for part in value) if isinstance(value, tuple) else value[order]
                for name, value in x.items()}  # fmt: skip
    torch.testing.assert_close(model(shuffled), model(x)[order])


@pytest.mark.parametrize("kind", KINDS)
def test_before_training_the_network_predicts_what_the_ridge_regression_predicts(study, kind):
    dls, linear, test = study
    settings = ModelSettings(fusion=FusionSettings(kind=kind, auxiliary=0.1))
    model = build_model(dls.blocks, settings, seed=3).start_from(linear).eval()
    outputs = torch.cat([model(x) for (x,) in dls.test_dl(test)])
    np.testing.assert_allclose(outputs.detach(), linear.predict(dls.blocks, test), atol=1e-4)
    assert linear.predict(dls.blocks, test).std() > 0.2


def test_before_training_a_binary_network_predicts_the_calibrated_log_odds(biobank):
    dls, linear, test = prepare(biobank, BinaryOutcome(field=30750, above=36))
    model = build_model(dls.blocks, seed=3).start_from(linear).eval()
    outputs = torch.cat([model(x) for (x,) in dls.test_dl(test)])
    np.testing.assert_allclose(outputs.sigmoid().detach(), linear.predict(dls.blocks, test), atol=1e-4)


def test_the_linear_part_rests_unless_it_is_told_to_learn(study):
    dls, linear, _ = study
    resting, learning = (build_model(dls.blocks).start_from(linear, learn) for learn in (False, True))
    assert not any(p.requires_grad for p in resting.additive_parameters())
    assert all(p.requires_grad for p in learning.additive_parameters())
    parts = {id(p) for p in resting.additive_parameters()}
    assert all(p.requires_grad for p in resting.parameters() if id(p) not in parts)


def test_the_seed_decides_the_weights(study):
    first, again, other = (build_model(study[0].blocks, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert any(not torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize("kind", KINDS)
def test_16_bits_run_and_stay_close(study, kind):
    model = network(study[0], kind)
    x, y = study[0].train.one_batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(with_junk(x, float("nan")))
    torch.testing.assert_close(out.float(), model(x), rtol=0.05, atol=0.1)
    ((out.float() - y) ** 2).mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_settings_reach_the_parts(study):
    settings = ModelSettings(fusion=FusionSettings(kind="concat", dim=7), hidden=5)
    encoders = {"snps": GenotypeSettings(block=10, channels=3), "blood": TabularSettings(layers=[9, 4])}
    model = build_model(study[0].blocks, settings, encoders)
    assert model.encoders["snps"].local.weight.shape == (20, 10, 3)
    assert [
        layer.out_features for layer in model.encoders["blood"].net if isinstance(layer, torch.nn.Linear)
    ] == [9, 4, 7]
    assert model.head.net[0].weight.shape == (5, 7)


def test_parts_that_do_not_fit_are_refused(study):
    dls, linear, _ = study
    x, _ = dls.train.one_batch()
    model = build_model(dls.blocks)
    with pytest.raises(ModelError, match="the modalities lifestyle, blood, snps"):
        model({"snps": x["snps"], "blood": x["blood"], "lifestyle": x["lifestyle"], "present": x["present"]})
    with pytest.raises(ModelError, match="found locally_connected. Choose .*tabular_mlp"):
        build_model(dls.blocks, encoders={"blood": GenotypeSettings()})
    with pytest.raises(ModelError, match="'snp'.*Did you mean 'snps'"):
        build_model(dls.blocks, encoders={"snp": GenotypeSettings()})
    for wrong, found in ((x["present"].float(), "float32"), (x["present"][:, :2], ", 2"), (x["present"][:, 0], r"bool \[128\]")):  # fmt: skip
        with pytest.raises(
            DataError, match=rf"bool \[batch, 3\], a column for each modality, found .*{found}"
        ):
            model({**x, "present": wrong})
    with pytest.raises(DataError, match="expected 5 participants, found 128"):
        model({**x, "present": x["present"][:5]})
    fewer = {name: dls.blocks[name] for name in ("blood", "snps")}
    with pytest.raises(ModelError, match="the linear model: expected the modalities blood, snps"):
        build_model(fewer).start_from(linear)


# ------------------------------------------------------------------------------------------- the whole model's contract


def people(x, rows):
    "Some participants of a batch."
    return MultiModalBatch((name, tuple(part[rows] for part in value) if isinstance(value, tuple) else value[rows])
                           for name, value in x.items())  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_any_set_of_modalities_gives_an_answer_and_nobody_the_priors(study, kind):
    model = network(study[0], kind)
    x, _ = study[0].train.one_batch()
    whole = x["present"].all(dim=1).nonzero()[:1, 0]
    same = people(x, whole.expand(8))
    same["present"] = torch.tensor([[bool(i >> m & 1) for m in range(3)] for i in range(8)])
    out = model(same)
    torch.testing.assert_close(out[:1], model.head(model.fusion.prior[None]))
    distances = torch.cdist(out, out) + torch.eye(8)
    assert out.isfinite().all() and distances.min() > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_one_is_as_good_as_any(study, kind):
    model = network(study[0], kind)
    x, y = study[0].train.one_batch()
    one = people(x, slice(5, 6))
    torch.testing.assert_close(model(one), model(x)[5:6])
    model.train()
    ((model(one) - y[5:6]) ** 2).mean().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_it_is_the_same(study, kind):
    model, file = network(study[0], kind), io.BytesIO()
    x, _ = study[0].train.one_batch()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = build_model(study[0].blocks, ModelSettings(fusion=FusionSettings(kind=kind)), seed=9).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_it_predicts_and_learns_the_same(study, backend):
    "As a whole, forward and backward, on batches of two sizes."
    model = network(study[0])
    x, y = study[0].train.one_batch()
    torch._dynamo.reset()
    compiled, gradients = torch.compile(model, backend=backend, fullgraph=True), []
    for way in (model, compiled):
        model.zero_grad()
        out = way(with_junk(x, float("nan")))
        ((out - y) ** 2).mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(out, model(x), rtol=1e-4, atol=1e-5)
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(compiled(people(x, slice(0, 7))), model(people(x, slice(0, 7))))


@pytest.mark.parametrize("kind", ["transformer", "late", "gated"])
def test_exported_it_serves_any_batch(study, kind):
    model = network(study[0], kind)
    x, _ = study[0].train.one_batch()
    batch = torch.export.Dim("batch", min=1, max=4096)
    shapes = {name: ({0: batch}, {0: batch}) if isinstance(value, tuple) else {0: batch} for name, value in x.items()}  # fmt: skip
    program = torch.export.export(model, (dict(x),), dynamic_shapes=(shapes,)).module()
    for rows in (slice(0, 40), slice(3, 4)):
        some = people(x, rows)
        torch.testing.assert_close(program(with_junk(some, float("nan"))), model(some), rtol=1e-4, atol=1e-5)


def test_late_fusion_adds_up_what_each_modality_says(study):
    model, dls = network(study[0], "late"), study[0]
    x, _ = dls.train.one_batch()
    x = people(x, x["present"].all(dim=1))
    other = {**x, "snps": x["snps"].roll(1, 0)}
    elsewhere = {"blood": tuple(part.roll(3, 0) for part in x["blood"])}
    change, there = model(other) - model(x), model({**other, **elsewhere}) - model({**x, **elsewhere})
    torch.testing.assert_close(change, there, rtol=1e-3, atol=1e-5)
    assert change.abs().max() > 0.01


def test_modalities_of_another_order_are_another_column_of_present_and_nothing_else(study):
    dls, order = study[0], ["snps", "lifestyle", "blood"]
    model = network(dls, "transformer")
    twin = build_model({name: dls.blocks[name] for name in order}, seed=4).eval()
    at = [list(dls.blocks).index(name) for name in order]
    state = {name: value[at] if name == "fusion.modality" else value for name, value in model.state_dict().items()}  # fmt: skip
    twin.load_state_dict(state)
    x, _ = dls.train.one_batch()
    turned = MultiModalBatch(
        {**{name: x[name] for name in order}, "present": x["present"][:, at], "row": x["row"]}
    )
    torch.testing.assert_close(twin(turned), model(x), rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------------------------------------- every encoder

EXAMPLES = {PhenotypeBlock: lambda: PhenotypeBlock([31, 21003, 20116, 30690]), SNPBlock: SNPBlock}


HISTORIES = {"grud", "visit_transformer", "event_transformer"}  # test_longitudinal.py tests the same of these


@pytest.fixture(scope="module", params=sorted({*ENCODERS.names()} - HISTORIES))
def encoded(request, biobank):
    "A fitted block, its encoder, rows with and without it, and a batch of them; a new kind of block needs an example above."
    encoder = ENCODERS[request.param]
    block = EXAMPLES[encoder.blocks[0]]().fit(biobank, np.arange(200))
    rows = torch.arange(40)
    x, present = block.transform(block.batch(rows)), torch.arange(40) % 3 > 0
    torch.manual_seed(0)
    made = encoder.of(block, 16, 2, encoder.settings_class())
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return block, made.eval(), x, present


def changed(value, how):
    "A modality's input with something done to each floating point tensor."
    if isinstance(value, torch.Tensor):
        return how(value) if value.is_floating_point() else value
    return tuple(changed(part, how) for part in value)


def alone(encoder, kind: str = "transformer") -> MultiModalModel:
    "A model of one modality and two raw outputs."
    torch.manual_seed(0)
    fusion = FUSIONS[kind](1, FusionSettings(kind=kind, dim=16), [encoder.n_tokens])
    head = Head(16, 2)
    nn.init.normal_(head.net[-1].weight)
    return MultiModalModel({"it": encoder}, fusion, head).eval()


def test_an_encoder_gives_what_it_says(encoded):
    block, encoder, x, _ = encoded
    additive = encoder.additive(x)
    z = encoder(x, additive)
    assert additive.shape == (40, 2)
    assert z.shape == ((40, 16) if encoder.n_tokens == 1 and z.ndim == 2 else (40, encoder.n_tokens, 16))
    assert z.isfinite().all() and isinstance(block, type(encoder).blocks)
    assert build_encoder(block, 16, type(encoder).settings_class()).n_tokens == encoder.n_tokens


def test_an_encoder_keeps_the_contract_in_a_model(encoded):
    _, encoder, x, present = encoded
    model = alone(encoder)

    def spoil(value):
        absent = ~present.view(-1, *[1] * (value.ndim - 1))
        return torch.where(absent, torch.nan, value).detach().requires_grad_()

    there = {"present": present[:, None], "row": torch.arange(40)}
    dirty = changed(x, spoil)
    out = model({"it": dirty, **there})
    assert torch.equal(out, model({"it": x, **there})) and out.isfinite().all()
    model.train()(MultiModalBatch({"it": dirty, **there})).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())
    for part in dirty if isinstance(dirty, tuple) else [dirty]:
        if part.is_floating_point():
            assert (part.grad[~present] == 0).all() and (part.grad[present] != 0).any()
    assert len(model.eval()({"it": x, **there})[~present].unique(dim=0)) == 1  # the prior
    for one in range(3):
        some = {name: value[one : one + 1] for name, value in there.items()}
        single = tuple(part[one : one + 1] for part in x) if isinstance(x, tuple) else x[one : one + 1]
        torch.testing.assert_close(model({"it": single, **some}), model({"it": x, **there})[one : one + 1])


def test_an_encoder_is_compiled_exported_saved_and_runs_in_16_bits(encoded):
    _, encoder, x, _ = encoded
    score = encoder.additive(x)
    expected = encoder(x, score)
    torch._dynamo.reset()
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, score), expected)
    program = torch.export.export(encoder, (x, score)).module()
    torch.testing.assert_close(program(x, score), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(encoder(x, score).float(), expected, rtol=0.1, atol=0.1)
    file = io.BytesIO()
    torch.save(encoder.state_dict(), file)
    file.seek(0)
    for parameter in encoder.parameters():
        parameter.data.zero_()
    encoder.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(encoder(x, score), expected)


class Tokens(nn.Module):
    "An encoder of three tokens."

    n_tokens = 3

    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 16)

    def additive(self, x):
        return x.sum(dim=(1, 2))[:, None] * 0

    def forward(self, x, additive):
        return self.net(x)


@pytest.mark.parametrize("kind", KINDS)
def test_encoders_may_give_tokens(kind):
    torch.manual_seed(0)
    encoders = {"visits": Tokens(), "table": ENCODERS["tabular_mlp"](2, [], 16)}
    fusion = FUSIONS[kind](2, FusionSettings(kind=kind, dim=16), [3, 1])
    model = MultiModalModel(encoders, fusion, Head(16)).eval()
    table = (torch.randn(6, 2), torch.zeros(6, 0, dtype=torch.long))
    x = {
        "visits": torch.randn(6, 3, 3),
        "table": table,
        "present": torch.tensor([[True, True], [False, True]] * 3),
    }
    out = model(x)
    assert out.shape == (6, 1)
    x["visits"][1::2] = torch.nan
    assert torch.equal(model(x), out)


# ----------------------------------------------------------------------------------------- several outputs, training


def test_several_raw_outputs(study):
    dls, linear, _ = study
    x, _ = dls.train.one_batch()
    model = build_model(
        dls.blocks, ModelSettings(fusion=FusionSettings(auxiliary=0.1)), loss=MulticlassLoss(4)
    ).train()
    assert model(x).shape == (128, 4) and model.additive(x).shape == (128, 3, 4)
    assert model.answers.shape == (128, 3, 4)
    with pytest.raises(ModelError, match="scores for 4 outputs, as the network"):
        model.start_from(linear)


def test_what_is_hidden_is_a_function_of_seed_epoch_and_row_alone():
    generator = torch.Generator().manual_seed(0)
    present = torch.rand(5000, 4, generator=generator) < 0.7
    present[:, 0] |= ~present.any(dim=1)
    rows = torch.randperm(500_000, generator=generator)[:5000]
    kept = hide_modalities(present, rows, 0.3, 7, 2)
    order = torch.randperm(5000, generator=generator)
    assert torch.equal(hide_modalities(present[order], rows[order], 0.3, 7, 2), kept[order])
    assert torch.equal(hide_modalities(present[:1], rows[:1], 0.3, 7, 2), kept[:1])
    assert kept.any(dim=1).all() and not (kept & ~present).any()
    for other in (hide_modalities(present, rows, 0.3, 8, 2), hide_modalities(present, rows, 0.3, 7, 3)):
        assert (
            0.2 < (other != kept)[present].float().mean() < 0.5
        )  # 2 x 0.3 x 0.7 and less where few are present
    assert torch.equal(hide_modalities(present, rows, 0.0, 7, 2), present)
    nothing = torch.zeros(3, 2, dtype=torch.bool)
    assert torch.equal(hide_modalities(nothing, torch.arange(3), 0.5, 0, 0), nothing)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6])
def test_the_share_that_is_hidden_is_the_share_that_was_asked_for(share):
    everything, rows = torch.ones(60_000, 3, dtype=torch.bool), torch.arange(60_000)
    kept = hide_modalities(everything, rows, share, 0, 0)
    expected = share - share**3 / 3  # of those who lose all, one of three is given back
    assert (1 - kept.float().mean(0)).tolist() == pytest.approx([expected] * 3, abs=0.012)
    pairs = (~kept[:, 0] & ~kept[:, 1]).float().mean()  # the third is there
    assert pairs == pytest.approx(share**2 * (1 - share) + share**3 / 3, abs=0.012)
    again = hide_modalities(everything, rows, share, 0, 1)
    assert (~again[:, 0] & ~kept[:, 0]).float().mean() == pytest.approx(expected**2, abs=0.012)
    neighbours = (~kept[1:, 0] & ~kept[:-1, 0]).float().mean()
    assert neighbours == pytest.approx(expected**2, abs=0.012)


def test_auxiliary_heads_see_their_own_modality_alone_and_answer_while_training_only(study):
    dls, linear, _ = study
    x, _ = dls.train.one_batch()
    settings = ModelSettings(fusion=FusionSettings(auxiliary=0.1), dropout=0.0)
    model = build_model(dls.blocks, settings).start_from(linear)
    for parameter in model.single.parameters():
        nn.init.normal_(parameter)
    model.eval()
    before = model(x)
    assert model.answers is None
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model.train()
    model(with_junk(x, float("nan")))
    answers = model.answers
    assert answers.shape == (128, 3, 1) and answers.isfinite().all()
    model({**x, "snps": -x["snps"]})
    assert torch.equal(model.answers[:, :2], answers[:, :2])
    assert not torch.allclose(model.answers[:, 2], answers[:, 2])
    model.eval()
    assert torch.equal(model(x), before)  # they do not take part in a prediction


def test_auxiliary_losses_reach_their_own_encoder_alone(study):
    dls, linear, _ = study
    x, y = dls.train.one_batch()
    model = build_model(dls.blocks, ModelSettings(fusion=FusionSettings(auxiliary=0.1))).start_from(linear, learn=True).train()  # fmt: skip
    nn.init.normal_(model.single.answer.weight)
    model(x)
    loss_for("regression")(model.answers[:, 1], y).backward()
    reached = {name.split(".")[1] for name, p in model.named_parameters()
               if name.startswith("encoders") and p.grad is not None and (p.grad != 0).any()}  # fmt: skip
    assert reached == {"blood"}
