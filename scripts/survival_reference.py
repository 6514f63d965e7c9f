"""Write tests/unit/survival_reference.json: survival losses and their gradients as other packages compute them (pycox in single precision).

Run where lifelines, statsmodels, torchsurv and pycox are installed; the tests compare with the file and need none of them.
"""

import json
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from lifelines.fitters.coxph_fitter import SemiParametricPHFitter
from lifelines.utils import concordance_index
from pycox.models.data import pair_rank_mat
from pycox.models.loss import DeepHitLoss, DeepHitSingleLoss, nll_logistic_hazard
from statsmodels.duration.hazard_regression import PHReg
from torchsurv.loss.cox import neg_partial_log_likelihood

OUT = Path(__file__).resolve().parents[1] / "tests" / "unit" / "survival_reference.json"
INTERVALS = 5


def draw(seed: int) -> dict[str, np.ndarray]:
    "60 people whose times are one of nine: almost every event is tied."
    rng = np.random.default_rng(seed)
    return {"time": rng.integers(1, 10, 60) / 2, "event": (rng.random(60) < 0.6).astype(float), "risk": rng.normal(0, 1.5, 60)}  # fmt: skip


def lifelines_efron(time: np.ndarray, event: np.ndarray, risk: np.ndarray) -> dict:
    "Log-likelihood and its gradient: with a column for each person the coefficients are the risks."
    order = np.argsort(time, kind="stable")
    one = pd.DataFrame(np.eye(len(time))[order])
    t, e = pd.Series(time[order]), pd.Series(event[order].astype(bool))
    _, gradient, value = SemiParametricPHFitter()._get_efron_values_single(
        one, t, e, pd.Series(np.ones(len(t))), None, risk
    )
    return {"value": -float(value), "gradient": (-gradient).tolist()}


def statsmodels_cox(time: np.ndarray, event: np.ndarray, risk: np.ndarray, ties: str) -> dict:
    "The same from statsmodels, with either treatment of ties."
    model = PHReg(time, np.eye(len(time)), status=event, ties=ties)
    return {"value": -float(model.loglike(risk)), "gradient": (-model.score(risk)).tolist()}


def torchsurv_cox(time: np.ndarray, event: np.ndarray, risk: np.ndarray, ties: str) -> float:
    "The same from torchsurv, the value alone."
    arrays = torch.tensor(risk), torch.tensor(event) > 0, torch.tensor(time)
    return neg_partial_log_likelihood(*arrays, ties_method=ties, reduction="sum").item()


def pycox_losses(seed: int, causes: int) -> dict:
    "DeepHit and, with one cause, the discrete hazard of pycox; place k stands for year k + 1."
    rng = np.random.default_rng(seed)
    place, event = rng.integers(0, INTERVALS, 40), rng.integers(0, causes + 1, 40)
    output = torch.tensor(
        rng.normal(size=(40, causes, INTERVALS)).round(4), dtype=torch.float32, requires_grad=True
    )
    ranks = torch.tensor(pair_rank_mat(place, event), dtype=torch.float32)
    where, what = torch.tensor(place), torch.tensor(event)
    found = {"place": place.tolist(), "event": event.tolist(), "output": output.flatten(1).tolist()}
    single = causes == 1
    loss = (DeepHitSingleLoss if single else DeepHitLoss)(alpha=0.3, sigma=0.2)
    raw = output.flatten(1) if single else output
    value = loss(raw, where, what.float() if single else what, ranks)
    (gradient,) = torch.autograd.grad(value, output)
    found["deephit"] = {"value": value.item(), "gradient": gradient.flatten(1).tolist()}
    if single:
        hazard = nll_logistic_hazard(raw, where, what.float())
        (gradient,) = torch.autograd.grad(hazard, output)
        found["hazard"] = {"value": hazard.item(), "gradient": gradient.flatten(1).tolist()}
    return found


def cox_case(seed: int) -> dict:
    "One drawing, and what everybody makes of it."
    people = draw(seed)
    return {**{name: values.tolist() for name, values in people.items()},
            "lifelines": {"efron": lifelines_efron(**people)},
            "statsmodels": {ties: statsmodels_cox(**people, ties=ties) for ties in ("efron", "breslow")},
            "torchsurv": {ties: torchsurv_cox(**people, ties=ties) for ties in ("efron", "breslow")},
            "concordance": concordance_index(people["time"], -np.round(people["risk"]), people["event"])}  # fmt: skip


def main() -> None:
    warnings.simplefilter("ignore")
    packages = ("lifelines", "statsmodels", "torchsurv", "pycox", "torch")
    found = {"versions": {name: version(name) for name in packages},
             "cox": [cox_case(seed) for seed in range(3)],
             "pycox": [pycox_losses(seed, causes) for seed, causes in ((0, 1), (1, 2), (2, 3))]}  # fmt: skip
    OUT.write_text(
        json.dumps(json.loads(json.dumps(found), parse_float=lambda x: round(float(x), 10))) + "\n"
    )


if __name__ == "__main__":
    main()
