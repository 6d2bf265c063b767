"""Write and read the file with a ladder's plan and choice, from which an interrupted ladder continues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gpt_pretrain.errors import UserError, describe_damage
from gpt_pretrain.model.costs import num_parameters
from gpt_pretrain.sweeps.folder import LADDER
from gpt_pretrain.sweeps.ladder import LR_FACTORS, N_RUNGS, LadderChoice, Prediction, Rung
from gpt_pretrain.system.files import write_json
from gpt_pretrain.system.formatting import is_finite_number
from gpt_pretrain.system.json_files import read_json
from gpt_pretrain.system.reading import DamagedFileError
from gpt_pretrain.training.budget import choice

MAX_FILE_BYTES = 100_000
MAX_SECONDS = 366 * 86400.0
MAX_WIDTH, MAX_LAYERS, MAX_VOCABULARY = 8192, 128, 300_000  # Other versions may choose other models, within these limits.


@dataclass
class StoredLadder:
    """A ladder's plan, and its choice once the rungs have ended.

    Args:
        seconds: The whole budget.
        planning: Seconds that were spent outside of the trainings.
    """

    seconds: float
    rungs: list[Rung]
    planning: float = 0.0
    choice: LadderChoice | None = None

    def save(self, folder: Path) -> None:
        """Write the file in a sweep's folder."""
        write_json(folder / LADDER, asdict(self))


def read_ladder(folder: Path) -> StoredLadder | None:
    """Return the ladder in a sweep's folder, or None if there is none.

    Raises:
        UserError: If the file is damaged, or has values that no ladder has.
    """
    try:
        content = read_json(folder / LADDER, max_bytes=MAX_FILE_BYTES, within=folder)
        return _parse(content)
    except FileNotFoundError:
        return None
    except (OSError, DamagedFileError, LookupError, TypeError, ValueError) as error:
        reason = getattr(error, "strerror", None) or describe_damage(error)
        raise UserError(f"{folder / LADDER} is damaged ({reason}). Start a new ladder.") from error


def _parse(content: dict[str, Any]) -> StoredLadder:
    rungs, chosen = content["rungs"], content.get("choice")
    if not isinstance(rungs, list) or not 0 < len(rungs) <= N_RUNGS:
        raise ValueError("it has no list of short trainings")
    return StoredLadder(
        _parse_seconds(content["seconds"]),
        [_parse_rung(one, factors=(1.0, *LR_FACTORS)) for one in rungs],
        _parse_seconds(content["planning"]),
        None if chosen is None else _parse_choice(chosen),
    )


def _parse_choice(content: dict[str, Any]) -> LadderChoice:
    best = _parse_rung(content["best"])
    sizes = _parse_predictions(content["sizes"])
    if num_parameters(best.config) not in [one.parameters for one in sizes]:
        raise ValueError("it has no prediction for the model that it has chosen")
    return LadderChoice(best, sizes, _parse_predictions(content["rungs"]), content["is_extrapolated"] is True)


def _parse_rung(content: dict[str, Any], *, factors: Sequence[float] | None = None) -> Rung:
    """Return a rung. Its values become settings of a training, so only values that this program can choose are accepted."""
    width, layers, vocab_size, factor = (content[name] for name in ("width", "layers", "vocab_size", "lr_factor"))
    limits = ((width, MAX_WIDTH), (layers, MAX_LAYERS), (vocab_size, MAX_VOCABULARY))
    if not all(type(value) is int and 0 < value <= most for value, most in limits) or width % choice.HEAD_DIM:
        raise ValueError("it has a model that no ladder trains")
    is_possible = is_finite_number(factor) and min(LR_FACTORS) <= factor <= max(LR_FACTORS)
    if not is_possible or (factors is not None and factor not in factors):
        raise ValueError("it has a learning rate that no ladder tries")
    return Rung(width, layers, vocab_size, float(factor), _parse_seconds(content["seconds"]))


def _parse_predictions(content: list[dict[str, Any]]) -> list[Prediction]:
    if not isinstance(content, list) or len(content) > MAX_LAYERS:
        raise ValueError("its predictions are not a short list")
    return [_parse_prediction(one) for one in content]


def _parse_prediction(content: dict[str, Any]) -> Prediction:
    bits = [content[name] for name in ("expected", "low", "high")]
    parameters = content["parameters"]
    if type(parameters) is not int or not 0 < parameters < 10**15:
        raise ValueError("a number of parameters in it is invalid")
    if not all(is_finite_number(one) and 0 < one < 100 for one in bits):
        raise ValueError("a prediction in it is invalid")
    return Prediction(parameters, *map(float, bits))


def _parse_seconds(value: object) -> float:
    if not is_finite_number(value) or not 0 <= value <= MAX_SECONDS:
        raise ValueError("a time in it is invalid")
    return float(value)
