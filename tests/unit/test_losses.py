"""Losses against other packages' numbers, by hand, by finite differences, and what must hold for each of them."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss, mean_pinball_loss, mean_squared_error

from ukbmm.cohort.outcomes import Outcome
from ukbmm.core import ModelError
from ukbmm.data.blocks import OutcomeBlock
from ukbmm.models.heads import Head, SeveralLoss, cut, loss_for
from ukbmm.models.losses import (
    LOSSES,
    BinaryLoss,
    GaussianLoss,
    HuberLoss,
    Loss,
    MulticlassLoss,
    MultilabelLoss,
    OrdinalLoss,
    QuantileLoss,
    RegressionLoss,
    unpositive,
)
from ukbmm.models.survival import CoxLoss, DeepHitLoss, HazardLoss, cox_terms, event_edges

# From scripts/survival_reference.py: lifelines, statsmodels, torchsurv and pycox
REFERENCE = json.loads((Path(__file__).parent / "survival_reference.json").read_text())
EDGES = [0.0, 0.5, 1.5, 2.0, 4.0]


def make() -> dict[str, Loss]:
    "Every loss once."
    single = {"regression": RegressionLoss(), "huber": HuberLoss(0.7), "gaussian": GaussianLoss(),
              "quantiles": QuantileLoss([0.1, 0.4, 0.5, 0.9]), "binary": BinaryLoss(), "multiclass": MulticlassLoss(4),
              "ordinal": OrdinalLoss(4), "multilabel": MultilabelLoss(3), "survival": CoxLoss([1.0, 3.0]),
              "breslow": CoxLoss([1.0], ties="breslow"), "hazard": HazardLoss(EDGES, [1.0, 3.0]),
              "competing_risks": HazardLoss(EDGES, [1.0, 3.0], causes=2), "deephit": DeepHitLoss(EDGES, [1.0, 3.0], causes=2)}  # fmt: skip
    parts = [OrdinalLoss(3), RegressionLoss(), GaussianLoss(), CoxLoss(), MultilabelLoss(2)]
    return {**single, "several": SeveralLoss(parts, [1, 1, 1, 2, 2])}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def targets(loss: Loss, n: int, seed: int = 0) -> torch.Tensor:
    "Targets that a loss understands, float32, with heavy ties of times."
    random = generator(seed)
    if isinstance(loss, SeveralLoss):
        return torch.cat([targets(part, n, seed + i) for i, part in enumerate(loss.parts)], dim=1)
    if "survival" in loss.kinds:
        time = torch.randint(1, 9, (n, 1), generator=random) / 2
        return torch.cat(
            [time, torch.randint(0, getattr(loss, "causes", 1) + 1, (n, 1), generator=random)], dim=1
        ).float()
    if "regression" in loss.kinds:
        return torch.randn(n, 1, generator=random)
    top, width = {"binary": (2, 1), "multilabel": (2, loss.n_outputs)}.get(
        loss.kinds[0], (getattr(loss, "n_classes", 2), 1)
    )
    return torch.randint(0, top, (n, width), generator=random).float()


def outputs(loss: Loss, n: int, seed: int = 5) -> torch.Tensor:
    return torch.randn(n, loss.n_outputs + loss.n_weights, generator=generator(seed), dtype=torch.float64)


def with_head(loss: Loss, raw: torch.Tensor) -> torch.Tensor:
    "Raw outputs whose weights are the same for everybody, as a head gives them."
    if not loss.n_weights:
        return raw
    return torch.cat([raw[:, : loss.n_outputs], raw[:1, loss.n_outputs :].expand(len(raw), -1)], dim=1)


EVERY = list(make())


def test_every_registered_loss_is_tested_here():
    assert {type(loss) for loss in make().values()} == set(LOSSES.entries.values())
    kinds = {
        "regression",
        "binary",
        "multiclass",
        "ordinal",
        "multilabel",
        "survival",
        "competing_risks",
        "several",
    }
    assert {kind for name in LOSSES.names() for kind in LOSSES[name].kinds} == kinds
    assert all(kind in LOSSES[kind].kinds for kind in kinds)


# -- against others


@pytest.mark.parametrize("case", REFERENCE["cox"], ids=range(3))
@pytest.mark.parametrize(("package", "ties"), [("lifelines", "efron"), ("statsmodels", "efron"), ("statsmodels", "breslow")])  # fmt: skip
def test_cox_with_heavy_ties_equals_lifelines_and_statsmodels_gradients_too(case, package, ties):
    risk = torch.tensor(case["risk"], dtype=torch.float64)[:, None].requires_grad_()
    target = torch.tensor([case["time"], case["event"]]).T
    assert len(set(case["time"])) <= 9 and sum(case["event"]) > 25
    loss = CoxLoss(ties=ties, reduction="sum")(risk, target)
    loss.backward()
    assert loss.item() == pytest.approx(case[package][ties]["value"], rel=1e-9)
    np.testing.assert_allclose(risk.grad[:, 0], case[package][ties]["gradient"], atol=1e-8)
    mean = CoxLoss(ties=ties)(risk, target)
    assert mean.item() == pytest.approx(
        case[package][ties]["value"] / sum(case["event"]), rel=1e-9
    )  # per event


@pytest.mark.parametrize("case", REFERENCE["cox"], ids=range(3))
@pytest.mark.parametrize("ties", ["efron", "breslow"])
def test_cox_equals_torchsurv(case, ties):
    loss = CoxLoss(ties=ties, reduction="sum")
    value = loss(torch.tensor(case["risk"])[:, None], torch.tensor([case["time"], case["event"]]).T)
    assert value.item() == pytest.approx(case["torchsurv"][ties], rel=1e-5)


def brute_force(risk: torch.Tensor, time: torch.Tensor, event: torch.Tensor, ties: str) -> float:
    "The definition, one time after the other."
    total = 0.0
    for when in time[event].unique():
        tied, there = event & (time == when), time >= when
        d, gone = int(tied.sum()), risk[tied].exp().sum()
        total -= risk[tied].sum()
        for rank in range(d):
            total += torch.log(risk[there].exp().sum() - (rank / d if ties == "efron" else 0) * gone)
    return float(total)


@pytest.mark.parametrize("ties", ["efron", "breslow"])
@pytest.mark.parametrize("seed", range(8))
def test_cox_equals_the_definition(ties, seed):
    random = np.random.default_rng(seed)
    n = int(random.integers(1, 80))
    time = torch.tensor(random.integers(1, int(random.choice([2, 5, 1000])) + 1, n), dtype=torch.float64)
    event, risk = (
        torch.tensor(random.random(n) < random.choice([0.1, 0.9])),
        torch.tensor(random.normal(0, 3, n)),
    )
    found = cox_terms(risk, time, event, ties)[0].sum().item()
    assert found == pytest.approx(brute_force(risk, time, event, ties), rel=1e-10, abs=1e-10)


def test_the_installed_packages_agree_with_cox_where_there_are_some():
    pytest.importorskip(
        "torchsurv", reason="torchsurv is not installed; its numbers are in survival_reference.json"
    )
    from torchsurv.loss.cox import neg_partial_log_likelihood

    random = generator(3)
    time, event = (
        torch.randint(1, 300, (5000,), generator=random).float(),
        torch.rand(5000, generator=random) < 0.2,
    )
    risk = torch.randn(5000, generator=random)
    for ties in ("efron", "breslow"):
        theirs = neg_partial_log_likelihood(risk, event, time, ties_method=ties, reduction="sum")
        assert cox_terms(risk, time, event, ties)[0].sum().item() == pytest.approx(theirs.item(), rel=1e-5)


@pytest.mark.parametrize("case", REFERENCE["pycox"], ids=range(3))
def test_deephit_and_discrete_hazards_equal_pycoxs(case):
    output = torch.tensor(case["output"], dtype=torch.float64, requires_grad=True)
    event, time = torch.tensor(case["event"]), torch.tensor(case["place"]) + 1.0
    causes, edges = len(case["output"][0]) // 5, torch.arange(6.0)
    losses = {"deephit": DeepHitLoss(edges, [2.0], causes, alpha=0.3, sigma=0.2)}
    losses |= {"hazard": HazardLoss(edges, [2.0])} if causes == 1 else {}
    for name, loss in losses.items():
        value = loss(output, torch.stack([time, event], dim=1))
        (gradient,) = torch.autograd.grad(value, output)
        assert value.item() == pytest.approx(case[name]["value"], rel=1e-5)
        np.testing.assert_allclose(gradient, case[name]["gradient"], atol=1e-6)


def test_losses_equal_scikit_learns():
    output, target = torch.randn(40, 1, generator=generator()) * 3, torch.randn(40, 1, generator=generator(1))
    assert loss_for("regression")(output, target).item() == pytest.approx(
        mean_squared_error(target, output), rel=1e-5
    )
    case, binary = (target > 0).float(), loss_for("binary")
    assert binary(output, case).item() == pytest.approx(
        log_loss(case[:, 0], binary.activation(output)[:, 0].double()), rel=1e-5
    )
    for name in ("multiclass", "ordinal"):
        loss, known = make()[name], torch.arange(40)[:, None] % 4
        p = loss.activation(torch.randn(40, loss.n_outputs, generator=generator(2)).double())
        value = loss(torch.randn(40, loss.n_outputs, generator=generator(2)).double(), known.float())
        assert value.item() == pytest.approx(log_loss(known[:, 0], p), rel=1e-6)
        np.testing.assert_allclose(p.sum(1), 1, rtol=1e-12)
    quantiles, raw = QuantileLoss([0.1, 0.8]), torch.randn(40, 2, generator=generator(2))
    theirs = [
        mean_pinball_loss(target, quantiles.activation(raw)[:, i], alpha=q) for i, q in enumerate((0.1, 0.8))
    ]
    assert quantiles(raw, target).item() == pytest.approx(np.mean(theirs), rel=1e-5)


def test_the_gaussian_and_huber_losses_equal_torchs():
    raw, target = (
        torch.randn(30, 2, generator=generator()).double(),
        torch.randn(30, 1, generator=generator(1)).double(),
    )
    variance = torch.nn.functional.softplus(raw[:, 1:]) + 1e-6
    theirs = torch.nn.functional.gaussian_nll_loss(raw[:, :1], target, variance)
    assert GaussianLoss()(raw, target).item() == pytest.approx(theirs.item(), rel=1e-9)
    assert HuberLoss(0.5)(raw[:, :1], target).item() == pytest.approx(torch.nn.functional.huber_loss(raw[:, :1], target, delta=0.5).item())  # fmt: skip


# -- by hand


def test_a_discrete_hazard_by_hand():
    hazard = torch.tensor([0.1, 0.2, 0.5], dtype=torch.float64)
    table = [([0.7, 1], 0.1), ([1.0, 1], 0.1), ([1.01, 1], 0.9 * 0.2), ([4.0, 1], 0.9 * 0.8 * 0.5),
             ([0.4, 0], 1.0), ([0.5, 0], 0.9), ([1.49, 0], 0.9), ([1.5, 0], 0.9 * 0.8), ([2.99, 0], 0.9 * 0.8),
             ([3.0, 0], 0.9 * 0.8 * 0.5), ([4.0, 0], 0.9 * 0.8 * 0.5), ([9.0, 1], 0.9 * 0.8 * 0.5)]  # fmt: skip
    loss = HazardLoss([0.0, 1, 2, 4], [1.0, 2.0, 3.0, 4.0], reduction="none")
    raw = (hazard / (1 - hazard)).log().expand(len(table), 3)
    found = loss(raw, torch.tensor([row for row, _ in table], dtype=torch.float64)).neg().exp()[:, 0]
    assert found.tolist() == pytest.approx([value for _, value in table])
    by_hand = [0.1, 1 - 0.72, 1 - 0.72 * 0.5**0.5, 1 - 0.36]
    assert loss.activation(raw[:1])[0].tolist() == pytest.approx(by_hand)


def test_competing_hazards_by_hand():
    chances = torch.tensor([[0.1, 0.2], [0.3, 0.2]], dtype=torch.float64)  # cause, interval
    raw = (chances / (1 - chances.sum(0))).log().flatten()[None]
    loss = HazardLoss([0.0, 1, 3], [1.0, 3.0], causes=2, reduction="none")
    rows = torch.tensor([[0.5, 1], [2.5, 2], [3.0, 0], [0.2, 0]], dtype=torch.float64)
    found = loss(raw.expand(4, -1), rows).neg().exp()[:, 0]
    assert found.tolist() == pytest.approx([0.1, 0.6 * 0.2, 0.6 * 0.6, 1.0])
    assert loss.activation(raw)[0].tolist() == pytest.approx([0.1, 0.1 + 0.6 * 0.2, 0.3, 0.3 + 0.6 * 0.2])


@pytest.mark.parametrize("name", ["hazard", "competing_risks", "deephit"])
def test_risks_never_fall_and_sum_to_no_more_than_one(name):
    loss = type(make()[name])(EDGES, np.linspace(0.1, 4, 30), causes=getattr(make()[name], "causes", 1))
    risk = loss.activation(5 * outputs(loss, 50)).unflatten(1, (loss.causes, 30))
    assert (risk.diff(dim=-1) >= -1e-9).all() and (risk >= 0).all() and (risk.sum(1) <= 1 + 1e-9).all()


def test_deephit_and_hazards_are_the_same_likelihood():
    hazards, hits = (
        HazardLoss(EDGES, [2.0, 4.0], causes=2),
        DeepHitLoss(EDGES, [2.0, 4.0], causes=2, alpha=1.0),
    )
    raw, target = outputs(hazards, 30), targets(hazards, 30)
    event, none = hazards.log_chances(raw)
    alive = none.cumsum(1)
    mass = event + (alive - none)[:, None] - alive[:, -1:, None]  # in logarithms, against "later"
    assert hits(mass.flatten(1), target).item() == pytest.approx(hazards(raw, target).item(), rel=1e-9)
    np.testing.assert_allclose(
        hits.activation(mass.flatten(1))[:, [1, 3]], hazards.activation(raw)[:, [1, 3]], rtol=1e-9
    )


def test_the_baseline_equals_breslows_by_hand_and_is_kept_with_the_weights():
    target = torch.tensor([[1.0, 1], [1.0, 1], [2.0, 0], [3.0, 1], [4.0, 0], [torch.nan, 1]])
    risk = torch.tensor([0.1, -0.4, 0.8, 0.3, -1.0, 5.0])[:, None]
    loss = CoxLoss([0.5, 1.0, 3.5]).finish(risk, target)
    every = risk[:5].exp().sum().item()
    hazard = [0.0, 2 / every, 2 / every + 1 / (math.exp(0.3) + math.exp(-1.0))]
    assert loss.log_baseline.exp().tolist() == pytest.approx(hazard, rel=1e-6)
    head = Head(4, loss=loss)
    other = Head(4, loss=CoxLoss([0.5, 1.0, 3.5]))
    other.load_state_dict(head.state_dict())
    assert torch.equal(other.loss.activation(risk), loss.activation(risk))


def test_the_baseline_makes_risks_that_are_calibrated():
    random = generator(7)
    risk, n = torch.randn(20000, 1, generator=random), 20000
    wait = -torch.rand(n, generator=random).log() / (0.1 * risk[:, 0].exp())
    follow = 1 + 5 * torch.rand(n, generator=random)
    target = torch.stack([torch.minimum(wait, follow), (wait <= follow).float()], dim=1)
    loss = CoxLoss([1.0, 3.0]).finish(risk, target)
    expected = 1 - torch.exp(-0.1 * torch.tensor([1.0, 3.0]) * risk.exp())
    assert (loss.activation(risk) - expected).abs().max() < 0.02


# -- what holds for each of them


@pytest.mark.parametrize("name", EVERY)
def test_gradients_equal_finite_differences(name):
    loss = make()[name].double()
    n = 6 if name in ("several", "deephit") else 12
    target = targets(loss, n).double()
    target[3] = torch.nan
    if name in ("multilabel", "several"):
        target[5, -1] = torch.nan
    raw = outputs(loss, n).requires_grad_()
    for reduction in ("mean",) if name == "several" else ("mean", "sum", "none"):
        assert torch.autograd.gradcheck(lambda x, r=reduction: loss(with_head(loss, x), target, r), (raw,))


@pytest.mark.parametrize("name", EVERY)
def test_the_order_of_participants_does_not_matter(name):
    loss = make()[name]
    raw, target = with_head(loss, outputs(loss, 33)), targets(loss, 33)
    order = torch.randperm(33, generator=generator(9))
    assert loss(raw[order], target[order]).item() == pytest.approx(loss(raw, target).item(), rel=1e-6)
    if name in ("survival", "several"):  # among tied events Efron's terms are those of places in an order
        return
    np.testing.assert_allclose(
        loss(raw[order], target[order], "none"), loss(raw, target, "none")[order], rtol=1e-6
    )


@pytest.mark.parametrize("name", EVERY)
def test_who_is_not_known_changes_nothing_and_gets_no_gradient(name):
    loss = make()[name]
    raw, target = with_head(loss, outputs(loss, 20)), targets(loss, 20)
    extended = torch.cat([raw, with_head(loss, torch.full_like(raw[:4], 30.0))])
    if loss.n_weights:
        extended[:, loss.n_outputs :] = raw[:1, loss.n_outputs :]
    extended.requires_grad_()
    value = loss(extended, torch.cat([target, torch.full_like(target[:4], torch.nan)]))
    assert value.item() == pytest.approx(loss(raw, target).item(), rel=1e-6)
    value.backward()
    assert (extended.grad[20:, : loss.n_outputs] == 0).all()
    assert (extended.grad[:20, : loss.n_outputs].abs().sum(0) > 0).any()


@pytest.mark.parametrize("name", EVERY)
def test_nobody_known_gives_zero_and_no_gradient(name):
    loss = make()[name]
    raw = torch.zeros(3, loss.n_outputs + loss.n_weights, requires_grad=True)
    value = loss(raw, torch.full_like(targets(loss, 3), torch.nan))
    value.backward()
    assert value.item() == 0 and (raw.grad[:, : loss.n_outputs] == 0).all()


@pytest.mark.parametrize("name", EVERY)
def test_one_participant_alone(name):
    loss = make()[name]
    raw = with_head(loss, outputs(loss, 1)).float().requires_grad_()
    for reduction, shape in (("mean", ()), ("sum", ()), ("none", (1, 1))):
        value = loss(raw, targets(loss, 1), reduction)
        assert value.shape == shape and value.isfinite().all()
    value.sum().backward()
    assert raw.grad.isfinite().all()


@pytest.mark.parametrize("name", EVERY)
def test_far_outputs_in_half_precision_stay_finite(name):
    loss = make()[name]
    target, raw = targets(loss, 40), with_head(loss, outputs(loss, 40))
    raw = (
        torch.where(torch.arange(raw.shape[1]) < loss.n_outputs, 50 * raw.sign(), raw)
        .to(torch.bfloat16)
        .requires_grad_()
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(raw, target)
    value.backward()
    assert value.dtype == torch.float32 and value.isfinite() and raw.grad.isfinite().all()
    assert loss.activation(raw).isfinite().all() and loss.activation(raw).dtype == torch.float32


@pytest.mark.parametrize("name", EVERY)
def test_reductions_and_shapes(name):
    loss = make()[name]
    raw, target = with_head(loss, outputs(loss, 25)), targets(loss, 25)
    each = loss(raw, target, "none")
    assert each.shape == (25, 1)
    if name not in ("survival", "breslow", "several"):
        assert each.mean().item() == pytest.approx(loss(raw, target).item(), rel=1e-6)
    loss.reduction = "sum"  # as fastai sets it
    assert loss(raw, target).item() == pytest.approx(loss(raw, target, "sum").item())
    with pytest.raises(ModelError, match="raw outputs of"):
        loss(raw[:, :-1], target)
    with pytest.raises(ModelError, match="raw outputs of"):
        loss(raw, target[:10])


@pytest.mark.parametrize("name", EVERY)
def test_training_starts_where_no_constant_is_better(name):
    loss = make()[name]
    target = targets(loss, 4000)
    start = loss.start(target)
    assert start.shape == (loss.n_outputs,) and start.isfinite().all()
    if name in ("huber", "deephit", "several"):  # a median; a ranking; parts are tested on their own
        return
    best = start.double().requires_grad_()
    loss(best.expand(4000, -1), target).backward()
    assert best.grad.abs().max() < 2e-3


@pytest.mark.parametrize("name", EVERY)
def test_a_loss_compiles_without_a_break_and_gives_the_same(name):
    loss = make()[name]
    raw, target = with_head(loss, outputs(loss, 16)).float().requires_grad_(), targets(loss, 16)
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    assert compiled(raw, target).item() == pytest.approx(loss(raw, target).item(), rel=1e-5)


def test_an_unknown_label_is_masked_and_the_others_count():
    loss, raw = MultilabelLoss(3), outputs(MultilabelLoss(3), 10)
    target = targets(loss, 10)
    target[torch.rand(10, 3, generator=generator(4)) < 0.4] = torch.nan
    known = ~target.isnan()
    by_hand = torch.nn.functional.binary_cross_entropy_with_logits(raw[known], target[known].double())
    assert loss(raw, target).item() == pytest.approx(by_hand.item(), rel=1e-9)


def test_quantiles_never_cross_and_classes_stay_in_order():
    loss = QuantileLoss([0.1, 0.5, 0.9])
    assert (loss.activation(100 * outputs(loss, 500)).diff(dim=1) >= 0).all()
    ordinal = OrdinalLoss(6)
    p = ordinal.activation(20 * outputs(ordinal, 500))
    assert (p >= 0).all() and p.isfinite().all()


def test_constant_steps_are_proportional_odds():
    loss, steps = OrdinalLoss(3), unpositive(torch.tensor(1.5))
    raw = torch.tensor([[0.0, steps], [0.8, steps]])
    above = loss.activation(raw).flip(1).cumsum(1)[:, :2].flip(1)  # above class 0, above class 1
    odds = (above / (1 - above)).log()
    np.testing.assert_allclose(odds[1] - odds[0], 0.8, rtol=1e-4)


def test_a_batch_without_an_event_says_nothing_to_cox():
    raw = torch.randn(5, 1, requires_grad=True)
    value = CoxLoss()(raw, torch.tensor([[1.0, 0], [2, 0], [3, 0], [3, 0], [1, 0]]))
    value.backward()
    assert value.item() == 0 and (raw.grad == 0).all()


def test_a_cox_loss_of_many_rows_is_as_exact_in_single_precision():
    random = generator(1)
    risk, time = (
        torch.randn(200_000, generator=random),
        torch.randint(1, 4000, (200_000,), generator=random).float(),
    )
    event = torch.rand(200_000, generator=random) < 0.05
    exact = cox_terms(risk.double(), time, event)[0].sum().item()
    assert cox_terms(risk, time, event)[0].sum().item() == pytest.approx(exact, rel=1e-5)


def test_edges_are_quantiles_of_events_without_repeats():
    target = torch.tensor(
        [[float(t), e] for t, e in zip([1, 1, 1, 1, 2, 3, 4, 8], [1, 1, 1, 1, 1, 0, 1, 0], strict=True)]
    )
    assert event_edges(target, 3).tolist() == [0.0, 1.0, 8.0]
    many = torch.stack([torch.arange(1.0, 1001), torch.ones(1000)], dim=1)
    edges = event_edges(many, 10)
    assert (
        torch.histogram(many[:, 0], edges).hist.sub(100).abs().max() <= 1
    )  # right ends belong to the left here


# -- heads, several outcomes, and what a fitted block gives


def outcome(kind: str, values: np.ndarray, **more) -> Outcome:
    return Outcome(kind, "y", kind, "", "p1", values, **more)


def test_the_loss_of_a_block_knows_classes_horizons_and_training_rows():
    random = np.random.default_rng(0)
    rows = np.arange(80)
    grades = OutcomeBlock(
        outcome("ordinal", random.integers(0, 3, 100).astype(float), classes=("a", "b", "c"))
    ).fit(None, rows)
    assert loss_for(grades).n_outputs == 2
    values = np.stack([random.integers(1, 100, 100) / 10, random.integers(0, 2, 100)], axis=1)
    dated = {"dates": np.zeros(100, "datetime64[D]"), "ends": np.zeros(100, "datetime64[D]")}
    values[90:, 0] = 50.0  # not a training row
    times = OutcomeBlock(outcome("survival", values, horizons=(2.0, 5.0), **dated)).fit(None, rows)
    assert loss_for(times).activation(torch.zeros(1, 1)).shape == (1, 2)
    hazard = loss_for(times, "hazard", intervals=4)
    assert hazard.intervals == 4 and hazard.edges[-1].item() == pytest.approx(values[:80, 0].max())
    late = OutcomeBlock(outcome("survival", values, horizons=(20.0,), **dated)).fit(None, rows)
    for name in ("survival", "hazard", "deephit"):
        with pytest.raises(ModelError, match="the longest follow-up"):
            loss_for(late, name)
    with pytest.raises(ModelError, match="'survival'.*deephit, hazard, survival.*named 'huber'"):
        loss_for(times, "huber")
    with pytest.raises(ModelError, match="'weather'.*no loss for it"):
        loss_for("weather")


def several_block() -> OutcomeBlock:
    random = np.random.default_rng(0)
    quantity = outcome("regression", random.normal(100, 15, 60))
    yes = outcome("binary", (random.random(60) < 0.3).astype(float))
    yes.values[::3] = np.nan
    values = np.stack([quantity.values, yes.values], axis=1)
    return OutcomeBlock(outcome("several", values, parts=(quantity, yes))).fit(None, np.arange(50))


def test_several_outcomes_of_a_block_are_masked_weighted_and_brought_back_to_their_scales():
    block = several_block()
    loss = loss_for(block)
    target = block.batch(torch.arange(60))
    assert (
        target[:50, 0].mean().item() == pytest.approx(0, abs=1e-6) and block.present(torch.arange(60)).all()
    )
    head = Head(4, loss.n_outputs, loss=loss)
    head.start_at(loss.start(block.targets))
    raw = head(torch.randn(60, 4, generator=generator()))
    assert raw.shape == (60, 4)
    parts = RegressionLoss()(raw[:, :1], target[:, :1]) / 2 + BinaryLoss()(raw[:, 1:2], target[:, 1:])
    assert loss(raw, target).item() == pytest.approx(parts.item(), rel=1e-6)
    loss(raw, target).backward()
    expected = [0.5 - parts.item() + BinaryLoss()(raw[:, 1:2], target[:, 1:]).item(), 0.5 - BinaryLoss()(raw[:, 1:2], target[:, 1:]).item()]  # fmt: skip
    assert head.log_variance.grad.tolist() == pytest.approx(expected, rel=1e-4)
    read = block.decode(loss.activation(raw).detach().numpy(), loss.columns)
    assert read[0].tolist() == pytest.approx([block.outcome.parts[0].values[:50].mean(), np.nanmean(block.outcome.parts[1].values[:50])], rel=0.05)  # fmt: skip


def test_scores_of_an_outcome_move_its_own_outputs_and_predictions_are_cut_apart():
    parts = [RegressionLoss(), OrdinalLoss(4), HazardLoss([0.0, 1, 2], (2.0,))]
    loss = SeveralLoss(parts, [1, 1, 2])
    assert loss.shifts.tolist() == [[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0, 0, 0, 0, 1, 1]]
    raw = torch.randn(5, 9, generator=generator())
    whole = loss.activation(raw)
    pieces = cut(whole.numpy(), loss.reads)
    assert [piece.shape for piece in pieces] == [(5, 1), (5, 4), (5, 1)]
    for part, piece, own in zip(parts, pieces, (raw[:, :1], raw[:, 1:4], raw[:, 4:6]), strict=True):
        np.testing.assert_array_equal(piece, part.activation(own).numpy())


def test_the_noise_of_an_outcome_is_learned():
    block = several_block()
    loss = loss_for(block)
    head = Head(4, loss.n_outputs, loss=loss)
    optimizer = torch.optim.LBFGS([head.log_variance], max_iter=50)
    target, raw = block.targets, head.net(torch.zeros(50, 4)).detach()

    def closure():
        optimizer.zero_grad()
        value = loss(torch.cat([raw, head.log_variance.expand(50, -1)], 1), target)
        value.backward()
        return value

    optimizer.step(closure)
    losses = [
        RegressionLoss()(raw[:, :1], target[:, :1]).item(),
        2 * BinaryLoss()(raw[:, 1:], target[:, 1:]).item(),
    ]
    assert head.log_variance.exp().tolist() == pytest.approx(losses, rel=1e-3)


def test_every_loss_is_registered_where_heads_alone_are_imported():
    code = "from ukbmm.models.heads import loss_for; print(type(loss_for('survival')).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "CoxLoss"


def test_a_head_starts_at_the_constant_it_is_given():
    head = Head(4, 2)
    head.start_at(0.75)
    assert head(torch.randn(3, 4)).tolist() == [[0.75, 0.75]] * 3
    head.start_at(torch.tensor([1.0, -1.0]))
    assert head(torch.randn(2, 4)).tolist() == [[1, -1]] * 2
    with pytest.raises(ModelError, match="expected 3 outputs, found 1"):
        Head(4, 1, loss=MulticlassLoss(3))


def test_the_binary_loss_stays_finite_where_a_probability_would_round_to_one():
    loss = loss_for("binary")
    assert loss(torch.tensor([[200.0]]), torch.tensor([[0.0]])).item() == pytest.approx(200.0)
    half = loss(torch.tensor([[20.0]], dtype=torch.bfloat16), torch.tensor([[0.0]]))
    assert half.dtype == torch.float32 and half.item() == pytest.approx(20.0)


MADE = {
    "a quantity": (RegressionLoss, [[1.5]], [[float("inf")]], "finite numbers"),
    "an answer": (BinaryLoss, [[1.0]], [[2.0]], "0 for no and 1 for yes"),
    "labels": (lambda: MultilabelLoss(2), [[1.0, float("nan")]], [[1.0, -1.0]], "0 for no and 1 for yes"),
    "a class": (lambda: MulticlassLoss(3), [[2.0]], [[3.0]], "from 0 to 2"),
    "half a class": (lambda: OrdinalLoss(3), [[2.0]], [[0.5]], "from 0 to 2"),
    "a time": (CoxLoss, [[0.0, 1.0]], [[-0.1, 1.0]], "times from 0 and events 0 or 1"),
    "an event": (CoxLoss, [[0.1, 0.0]], [[1.0, 2.0]], "times from 0 and events 0 or 1"),
    "a cause": (lambda: HazardLoss([0.0, 1.0], [0.5], 2), [[0.5, 2.0]], [[0.5, 3.0]], "events 0 to 2"),
    "an early time": (lambda: DeepHitLoss([0.0, 1.0], [0.5]), [[0.5, 1.0]], [[0.0, 1.0]], "times above 0"),
}


@pytest.mark.parametrize("make, right, wrong, allowed", MADE.values(), ids=MADE)
def test_a_value_that_cannot_be_is_refused_in_the_first_batch_and_not_looked_for_again(make, right, wrong, allowed):  # fmt: skip
    loss = make()
    output, right, wrong = torch.zeros(1, loss.n_outputs), torch.tensor(right), torch.tensor(wrong)
    with pytest.raises(ModelError, match=f"the target of {type(loss).__name__}: expected .*{allowed}.*found others"):  # fmt: skip
        loss(output, wrong)
    loss = make()
    assert loss(output, right).isfinite() and loss(output, torch.full_like(right, torch.nan)) == 0
    looked = []
    loss.fits = looked.append  # a GPU would have to wait for it
    loss(output, right)
    assert looked == []


@pytest.mark.parametrize("make, right, wrong, allowed", MADE.values(), ids=MADE)
def test_a_shape_that_does_not_fit_is_refused_in_every_batch(make, right, wrong, allowed):
    loss, target = make(), torch.tensor(right)
    loss(torch.zeros(1, loss.n_outputs), target)
    for output, other in (
        (torch.zeros(1, loss.n_outputs + 1), target),
        (torch.zeros(1, loss.n_outputs), torch.cat([target, target], dim=1)),
        (torch.zeros(1, loss.n_outputs), target[:, 1:]),
        (torch.zeros(1, loss.n_outputs), target[0]),
        (torch.zeros(2, loss.n_outputs), target),
    ):
        with pytest.raises(ModelError, match=rf"expected \[batch, {loss.n_outputs}\] and a target \[batch, {target.shape[1]}\]"):  # fmt: skip
            loss(output, other)


def test_values_of_everybody_are_looked_at_when_a_loss_is_made_of_an_outcome():
    values = np.array([0.0, 1, 0, 1, np.nan, 2])
    block = OutcomeBlock(outcome("binary", values)).fit(None, np.arange(4))
    with pytest.raises(ModelError, match="the target of BinaryLoss"):
        loss_for(block)


@pytest.mark.parametrize("edges", [[0.0, 2.0, 1.0], [0.5, 1.0], [0.0], [0.0, 1.0, 1.0]])
def test_edges_and_horizons_that_do_not_ascend_are_refused(edges):
    for kind in (HazardLoss, DeepHitLoss):
        with pytest.raises(ModelError, match="edges of intervals: expected years from 0, ascending"):
            kind(edges, [0.5])
    for horizons in ([5.0, 1.0], [0.0, 1.0], [2.0, 2.0]):
        with pytest.raises(ModelError, match="horizons: expected years above 0, ascending"):
            CoxLoss(horizons)
