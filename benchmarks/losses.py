"""Cox's loss at 500,000 people, forward and backward: ours, torchsurv's, and what sorting and one running sum take.

Times are whole days, as UK Biobank's are, so nearly every event is tied. Before anything is timed, values are compared. torchsurv's
loss is asked for its sum: its mean is per distinct time, ours per event.
"""

import statistics
from collections.abc import Callable
from importlib.util import find_spec

import torch
from common import arguments, print_table, print_versions, ratio, seconds, verdict

from ukbmm.models.survival import CoxLoss

TARGET, DAYS = 1.2, 4500


def draw(people: int) -> tuple[torch.Tensor, torch.Tensor]:
    "Risks and targets: 5% have an event, at one of 4,500 days."
    random = torch.Generator().manual_seed(0)
    time = torch.randint(1, DAYS, (people,), generator=random) / 365.25
    event = (torch.rand(people, generator=random) < 0.05).float()
    return torch.randn(people, 1, generator=random), torch.stack([time, event], dim=1)


def torchsurv_loss(ties: str) -> Callable | None:
    "torchsurv's loss per event; None where it is not installed."
    if find_spec("torchsurv") is None:
        return None
    from torchsurv.loss.cox import neg_partial_log_likelihood

    def loss(risk: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        event = target[:, 1] > 0
        return neg_partial_log_likelihood(risk[:, 0], event, target[:, 0], ties_method=ties, reduction="sum") / event.sum()  # fmt: skip

    return loss


def limit(risk: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    "What nobody does without: a sort and a running sum, ties left as they fall."
    order = target[:, 0].sort(descending=True).indices
    ordered, event = risk[order, 0], target[order, 1]
    return ((ordered.logcumsumexp(0) - ordered) * event).sum() / event.sum()


def step(loss: Callable, risk: torch.Tensor, target: torch.Tensor) -> Callable[[], torch.Tensor]:
    "A call that goes forward and backward and gives the gradient."

    def call() -> torch.Tensor:
        leaf = risk.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf, target), leaf)[0]

    return call


def main() -> None:
    options = arguments(__doc__)
    people = 5_000 if options.quick else 500_000
    risk, target = draw(people)
    print(f"{people:,} people, {int(target[:, 1].sum()):,} events on {DAYS:,} days")
    print_versions(*(["torchsurv"] if find_spec("torchsurv") else []))
    rows = []
    for ties in ("efron", "breslow"):
        losses = {"ours": CoxLoss(ties=ties), "torchsurv": torchsurv_loss(ties), "limit": limit}
        calls = {name: step(loss, risk, target) for name, loss in losses.items() if loss is not None}
        if "torchsurv" in calls:
            torch.testing.assert_close(calls["ours"](), calls["torchsurv"](), rtol=1e-3, atol=1e-8)
        rows += report(ties, seconds(calls, options.repeats or (2 if options.quick else 9), options.clock))
    print_table(["Cox loss, forward and backward", "ms", "time / torchsurv", "time / limit", "target"], rows)


def report(ties: str, taken: dict[str, list[float]]) -> list[list[str]]:
    "A row for each way; without torchsurv there is no target."
    peer = taken.get("torchsurv")
    rows = []
    for name, title in (
        ("ours", "ours"),
        ("torchsurv", "torchsurv"),
        ("limit", "limit: sort and running sum"),
    ):
        if name in taken:
            times = ratio(taken[name], peer) if peer else None
            target = f"{verdict(times <= TARGET)} (<= {TARGET})" if name == "ours" and peer else ""
            rows.append([f"{title}, {ties}", f"{1e3 * statistics.median(taken[name]):.0f}", f"{times:.2f}" if peer else "not installed",
                         f"{ratio(taken[name], taken['limit']):.2f}", target])  # fmt: skip
    return rows


if __name__ == "__main__":
    main()
