"""The trials of the study."""

from __future__ import annotations

import math
from dataclasses import replace

from benchmarks.scaling.trial import BYTE_TOKENS, DROPOUT, GPT2_TOKENS, Trial
from gpt_pretrain.training.budget.choice import regularization_of
from gpt_pretrain.training.budget.law import Training

SHAPES = {"xs": (64, 2), "s": (96, 3), "m": (128, 4), "l": (192, 4), "xl": (256, 6)}
K = 1000
LARGE, SMALL = 900 * K, 100 * K  # bytes of a text
VOCAB = 1024
TYPICAL_BYTES = {BYTE_TOKENS: 1.0, 512: 2.2, 1024: 2.6, 2048: 3.0, 4096: 3.4, 8192: 3.8, GPT2_TOKENS: 3.5}  # per token
PILOTS = (125 * K, 500 * K)  # bytes that pilots read; on a slow machine, a budget uses a short pilot

# The choices of a budget of one to five minutes on two cores, and smaller models: text, its kB, shape, kB to read, vocabulary.
BUDGETS = (
    *(("manual", 900, "xs", 1000, 2048), ("manual", 900, "xs", 1000, 4096), ("manual", 900, "s", 2000, 2048)),
    *(("manual", 900, "m", 4000, 2048), ("manual", 900, "m", 8000, 4096), ("manual", 200, "xs", 2000, 2048)),
    *(("bible", 100, "xs", 2000, 1024), ("bible", 3000, "xs", 2000, 2048), ("bible", 3000, "s", 2000, 2048)),
    *(("quotes", 300, "xs", 1000, 2048), ("quotes", 900, "s", 2000, 2048), ("quotes", 2000, "s", 4000, 4096)),
    *(("vim", 5000, "s", 2000, 2048), ("vim", 5000, "xs", 4000, 2048), ("vim", 900, "s", 2000, 2048)),
    *(("french", 900, "s", 2000, 2048), ("french", 300, "xs", 2000, 2048), ("vim", 200, "xs", 2000, 2048)),
    *(("code", 300, "s", 2000, 2048), ("code", 2000, "s", 2000, 4096), ("german", 900, "s", 2000, 2048)),
    *((text, 900, "xs", 2000, 2048) for text in ("perl", "script", "headers")),
    *((text, 900, "s", 4000, 4096) for text in ("perl", "script", "headers")),
    *((text, 900, "m", 4000, 2048) for text in ("perl", "script", "headers")),
)

# Short texts that are read many times, where small vocabularies overfit less: text, kB, shape, passes, vocabularies.
REPEATED = (
    *(("manual", 100, "s", 20, (512, 1024, 2048)), ("code", 100, "s", 20, (512, 1024, 2048))),
    *(("german", 100, "s", 20, (512, 1024, 2048)), ("manual", 100, "m", 20, (512, 1024)), ("manual", 100, "s", 40, (512,))),
    *(("manual", 900, "l", 20, (1024, 2048)), ("manual", 900, "l", 10, (1024, 4096)), ("manual", 900, "xl", 10, (1024,))),
    *((text, 20, "xs", passes, (512,)) for text in ("manual", "quotes") for passes in (8, 16, 32, 64)),
)

# The short texts, whole documents of which some parts are held out, with the bytes to train on. The rules were chosen by the
# first six and checked with the others.
SHORT = {
    **{"story": 16_380, "license": 28_119, "de-page": 20_268, "configparser": 20_000, "countries": 20_729, "genesis": 20_000},
    **{"lesser": 20_000, "fr-page": 20_043, "literature": 20_000, "languages": 20_002, "textwrap": 15_778},
}


def base(text: str, shape: str, trained: int, unique: int, vocab_size: int = VOCAB) -> Trial:
    """Return a trial. Its batch grows with the length of the training. Its regularization is that of a budget."""
    width, layers = SHAPES[shape]
    regularization = usual_regularization(12 * layers * width**2, vocab_size, unique, trained)
    return Trial(text, unique, trained, vocab_size, width, layers, batch=batch_of(trained), regularization=regularization)


def batch_of(trained: int) -> int:
    """Return the number of windows in a step. It grows with the square root of the length."""
    return max(4, 1 << round(math.log2(1.5 * math.sqrt(trained / 2.5) / 128)))


def usual_regularization(matrices: int, vocab_size: int, unique: int, trained: int) -> str:
    """Return the name of the regularization that a budget chooses for about the same training."""
    training = Training(matrices, vocab_size, unique, trained, TYPICAL_BYTES[vocab_size])
    return {dropout: name for name, dropout in DROPOUT.items()}[regularization_of(training)[0]]


def short() -> list[Trial]:
    """Read short texts several times with GPT-2's vocabulary and with vocabularies of their own, after pilots with both."""
    found = []
    for text, unique in SHORT.items():
        for size, passes in ((1024, 8), (1024, 16), (512, 8), (512, 16), *((GPT2_TOKENS, n) for n in (4, 8, 16))):
            found.append(base(text, "xs", passes * unique, unique, size))
        found += [replace(base(text, "xs", 4 * unique, unique, size), regularization="none") for size in (VOCAB, GPT2_TOKENS)]
    return found


def all_trials() -> list[Trial]:
    """Return all trials without repetitions, the cheapest first, so that even an interrupted study covers all questions."""
    groups = (
        pilots,
        size_and_tokens,
        repeats,
        other_texts,
        vocabularies,
        regularizations,
        rates,
        longer,
        budgets,
        overfitting,
        short,
    )
    return sorted(dict.fromkeys(trial for group in groups for trial in group()), key=work)


def work(trial: Trial) -> float:
    """Return a number that is roughly proportional to the training's duration."""
    return trial.trained_bytes * (12 * trial.layers * trial.width**2 + 2 * trial.vocab_size * trial.width)


def pilots() -> list[Trial]:
    """Train the smallest model for a moment on each text. A budget does the same to measure the text's difficulty."""
    texts = ("manual", "code", "german", "bible", "play")
    sizes = [(text, unique) for text in texts for unique in (LARGE, SMALL) if unique == SMALL or text != "play"]
    sizes += [(text, unique * K) for text, unique, *_ in BUDGETS]
    return [replace(base(text, "xs", n, unique), regularization="none") for text, unique in sizes for n in PILOTS]


def size_and_tokens() -> list[Trial]:
    """Vary size and length on one text, nearly without repeats."""
    lengths = {"xs": (125, 500, 1000), "s": (125, 500, 1000), "m": (125, 500, 1000), "l": (125, 500), "xl": (125,)}
    return [base("manual", shape, n * K, LARGE) for shape, ns in lengths.items() for n in ns]


def repeats() -> list[Trial]:
    """Vary size and length on a small part of the text."""
    lengths = {"xs": (500, 2000), "s": (500, 1000), "m": (500, 1000), "l": (500,)}
    return [base("manual", shape, n * K, SMALL) for shape, ns in lengths.items() for n in ns]


def other_texts() -> list[Trial]:
    """Compare texts of other kinds at a few points."""
    points = (("s", 125, LARGE), ("s", 500, LARGE), ("m", 500, LARGE), ("s", 500, SMALL), ("m", 1000, SMALL))
    return [
        base(text, shape, n * K, unique)
        for text in ("code", "german", "play", "bible")
        for shape, n, unique in points
        if unique == SMALL or text != "play"
    ]


def vocabularies() -> list[Trial]:
    """Vary the vocabulary at the same length in bytes."""
    return [
        base(text, "s", n * K, unique, vocab_size=size)
        for text, n, unique in (("manual", 500, LARGE), ("german", 500, LARGE), ("manual", 1000, SMALL))
        for size in (BYTE_TOKENS, 512, 2048, 4096)
    ]


def regularizations() -> list[Trial]:
    """Vary dropout and decay at several numbers of passes."""
    points = [base("manual", "s", n * K, SMALL) for n in (200, 500, 1000)] + [base("manual", "m", 1000 * K, SMALL)]
    return [replace(point, regularization=level) for point in points for level in ("none", "light", "strong")]


def rates() -> list[Trial]:
    """Vary the learning rates and the batch at several widths."""
    points = [base("manual", shape, n * K, LARGE) for shape, n in (("xs", 500), ("s", 500), ("m", 500))]
    varied = [replace(point, rate=rate) for point in points for rate in (0.5, 2.0)]
    for point in points[1:2]:
        varied += [replace(point, batch=point.batch * 4, rate=rate) for rate in (1.0, 2.0)]
        varied += [replace(point, batch=point.batch * 2)]
    return varied


def longer() -> list[Trial]:
    """Repeat points with other seeds, and add longer trainings."""
    point = base("manual", "s", 500 * K, LARGE)
    return [replace(point, seed=seed) for seed in (2, 3)] + [
        base("manual", "xs", 4000 * K, LARGE),
        base("manual", "s", 4000 * K, LARGE),
    ]


def budgets() -> list[Trial]:
    """Train the models that a budget chooses: with large vocabularies, and on texts that are read many times."""
    return [base(text, shape, trained * K, unique * K, size) for text, unique, shape, trained, size in BUDGETS]


def overfitting() -> list[Trial]:
    """Read short texts many times, with vocabularies of several sizes."""
    return [
        base(text, shape, passes * unique * K, unique * K, size)
        for text, unique, shape, passes, sizes in REPEATED
        for size in sizes
    ]
