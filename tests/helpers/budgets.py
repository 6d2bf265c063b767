"""A law, a machine and texts to choose for."""

from gpt_pretrain.training.budget import choice
from gpt_pretrain.training.budget.amount import Budget
from gpt_pretrain.training.budget.law import Difficulty, Law, Training
from gpt_pretrain.training.budget.speed import Speed

LAW = Law(
    {"a": 0.06, "alpha": 0.24, "b": 0.12, "beta": 0.2, "repeats": 3.5, "capacity": 60.0, "ngrams": 0.68, "vocabulary": 0.0}
    | {"vocabulary_fades": 0.3, "overfit_matrices": 3e-5, "overfit_vocabulary": 0.07},
    errors={125_000: 0.07},
    largest={"matrices": 1e6, "unique_bytes": 1e6, "trained_bytes": 1e6},
    repetition={125_000: 0.7},
)
DIFFICULTY = Difficulty(Training(98_304, 1024, 1e6, 125_000, 2.7), 2.6, {20_000: 4.1, 125_000: 3.0, 500_000: 2.5})
SPEED = Speed((1e6, 1e8), (2e10, 2e10), fixed=5e-3)
LIMITS = choice.Limits(seconds=120.0, memory=8 << 30, disk=8 << 30)


def text_of(n_bytes: int) -> choice.TextFacts:
    return choice.TextFacts(n_bytes, {512: 2.1, 1024: 2.7, 2048: 3.2, 4096: 3.6}, DIFFICULTY)


def conditions(n_bytes: int, budget: Budget, limits: choice.Limits = LIMITS, speed: Speed = SPEED) -> choice.Conditions:
    return choice.Conditions(text_of(n_bytes), budget, limits, speed, LAW)


def choose(n_bytes: int, budget: Budget, limits: choice.Limits = LIMITS) -> choice.Candidate:
    configs = choice.architectures([512, 1024, 2048, 4096])
    found = list(choice.candidates(conditions(n_bytes, budget, limits), configs=configs))
    return choice.best_of([one for one in found if choice.fits(one, limits) is None])
