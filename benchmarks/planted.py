"""People whose outcome is known to the last digit: effects of three modalities, and of a product of two of them.

`y = 0.5 a + 0.4 b + 0.3 c + 0.6 a b + noise`, where a, b and c are standard normal, and each is a direction in its
modality's numbers. What is not known of somebody is independent of what is, and has mean zero. So the best prediction
from any set of modalities is the sum of the terms that it knows, and the best R2 is known for every pattern of presence.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ukbmm.data.batch import MultiModalBatch
from ukbmm.models.fusion import FusionSettings
from ukbmm.models.layers import FUSIONS
from ukbmm.models.multimodal import ModelSettings, MultiModalModel, build_head, hide_modalities
from ukbmm.models.tabular import TabularEncoder, TabularSettings

NAMES, EFFECTS, PRODUCT, NOISE, WIDTH = ("a", "b", "c"), (0.5, 0.4, 0.3), 0.6, 0.5, 4
VARIANCE = sum(effect**2 for effect in EFFECTS) + PRODUCT**2 + NOISE**2
BEST = 1 - NOISE**2 / VARIANCE  # R2 of a perfect model of everything
ADDITIVE = (
    sum(effect**2 for effect in EFFECTS) / VARIANCE
)  # of the best sum of functions of one modality each
SINGLE = max(EFFECTS) ** 2 / VARIANCE  # of the best function of one modality


@dataclass(frozen=True)
class People:
    "Invented people: numbers of each modality, the causes in them, who has which, and the outcome."

    numbers: Tensor  # float32 [batch, modality, column]
    present: Tensor  # bool [batch, modality]
    y: Tensor  # float32 [batch, 1]

    @property
    def x(self) -> MultiModalBatch:
        "A batch of everybody; what is absent is NaN."
        kept = torch.where(self.present.unsqueeze(-1), self.numbers, torch.nan).unbind(1)
        codes = torch.zeros(len(self.y), 0, dtype=torch.long)
        return MultiModalBatch({**{name: (part, codes) for name, part in zip(NAMES, kept, strict=True)},
                                "present": self.present, "row": torch.arange(len(self.y))})  # fmt: skip

    def __getitem__(self, rows: Tensor) -> "People":
        return People(self.numbers[rows], self.present[rows], self.y[rows])

    def lacking(self, share: float, seed: int) -> "People":
        "The same people, who lack each modality at random, but never all."
        lot = torch.rand(self.present.shape, generator=torch.Generator().manual_seed(seed))
        return replace(self, present=(lot >= share) | (lot == lot.amax(dim=1, keepdim=True)))

    def without(self, modality: int) -> "People":
        "The same people, of whom nobody has a modality."
        return replace(self, present=self.present & (torch.arange(len(NAMES)) != modality))

    def only(self, modality: int) -> "People":
        "The same people, of whom nothing but a modality is known."
        return replace(self, present=self.present & (torch.arange(len(NAMES)) == modality))

    def best(self) -> Tensor:  # float32 [batch, 1]
        "The best prediction from what is present."
        return expected(self.numbers.sum(2) / WIDTH**0.5, self.present)


def expected(causes: Tensor, present: Tensor) -> Tensor:  # float32 [batch, 1]
    "The expectation of the outcome, given the causes that are present."
    known = torch.where(present, causes, 0.0)
    return (known @ torch.tensor(EFFECTS) + PRODUCT * known[:, 0] * known[:, 1])[:, None]


def draw(n: int, seed: int) -> People:
    "Invent people who have everything."
    chance = torch.Generator().manual_seed(seed)
    numbers = torch.randn(n, len(NAMES), WIDTH, generator=chance)
    everything = torch.ones(n, len(NAMES), dtype=torch.bool)
    noise = NOISE * torch.randn(n, 1, generator=chance)
    return People(numbers, everything, expected(numbers.sum(2) / WIDTH**0.5, everything) + noise)


def network(kind: str, seed: int, dim: int = 32, dropout: float = 0.0) -> MultiModalModel:
    "A network of three tables, that starts at nothing."
    torch.manual_seed(seed)
    settings = ModelSettings(fusion=FusionSettings(kind=kind, dim=dim, dropout=dropout), dropout=dropout)
    tables = {
        name: TabularEncoder(WIDTH, [], dim, settings=TabularSettings(dropout=dropout)) for name in NAMES
    }
    fusion = FUSIONS[kind](len(NAMES), settings.fusion)
    return MultiModalModel(tables, fusion, build_head(fusion, settings))


def train(model: nn.Module, people: People, seed: int, epochs: int = 16, bs: int = 256, lr: float = 3e-3,
          hide: float = 0.0) -> nn.Module:  # fmt: skip
    "Train with AdamW and one cycle; `hide` is the share of modality dropout."
    chance, n = torch.Generator().manual_seed(seed), len(people.y)
    bs = min(bs, n)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    steps = epochs * (n // bs)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps)
    model.train()
    for epoch in range(epochs):
        for rows in torch.randperm(n, generator=chance).split(bs)[: n // bs]:
            some = people[rows]
            x = some.x
            if hide:
                x["present"] = hide_modalities(x["present"], rows, hide, seed, epoch)
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), some.y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return model.eval()


def r2(model: nn.Module, people: People) -> float:
    "The share of the outcome's variance that a model explains."
    with torch.no_grad():
        return 1 - float(((model(people.x) - people.y) ** 2).mean() / people.y.var())


def best_r2(people: People) -> float:
    "The share that the best possible model explains, given what is present."
    return 1 - float(((people.best() - people.y) ** 2).mean() / people.y.var())
