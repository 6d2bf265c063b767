"""Run the trials of the study that are still missing: python -m benchmarks.scaling [NAME=FILE ...].

The texts are documentation and code that come with Python; German and French manual pages, quotations, the manual of Vim, and
source files of Perl, npm and Linux if the system has them; and given files. The results have two more, "play" (As You Like It)
and "bible" (the King James Version). Short texts are single documents; "story" (The Verdict) and "genesis" (the beginning of the
King James Version) are given files.
Each result is a line of `results.jsonl`, so that an interrupted study continues where it stopped. `texts.json` has the n-gram
models' results on each text.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path

from benchmarks.scaling.short_texts import short_texts
from benchmarks.scaling.texts import StudyText, load_texts
from benchmarks.scaling.trial import Trial, run_trial
from benchmarks.scaling.trials import all_trials
from gpt_pretrain.training.budget.text_facts import counted

RESULTS, TEXTS = (Path(__file__).with_name(name) for name in ("results.jsonl", "texts.json"))


def main() -> None:
    """Run the trials in their order, and append their results to the file."""
    files = {name: Path(file) for name, _, file in (argument.partition("=") for argument in sys.argv[1:])}
    texts, done = load_texts(files) | short_texts(files), finished()
    count_ngrams(texts)
    for trial in all_trials():
        if trial in done or trial.text not in texts:
            continue
        row = run_trial(trial, texts[trial.text])
        with RESULTS.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def finished() -> set[Trial]:
    """Return the trials whose results are in the file."""
    lines = RESULTS.read_text(encoding="utf-8").splitlines() if RESULTS.is_file() else []
    names = [field.name for field in fields(Trial)]
    return {Trial(**{name: row[name] for name in names}) for row in map(json.loads, lines)}


def count_ngrams(texts: Mapping[str, StudyText]) -> None:
    """Add the n-gram models' results on each text. As in `budget=`, they count parts spread over the training text.

    The file has bits per byte by the name of the text, the bytes of its training text, and the number of counted bytes.
    """
    content = json.loads(TEXTS.read_text(encoding="utf-8")) if TEXTS.is_file() else {}
    for name, unique in sorted({(trial.text, trial.unique_bytes) for trial in all_trials()}):
        counts = content.setdefault(name, {})
        if name in texts and str(unique) not in counts:
            found = counted(texts[name].training(unique), texts[name].held_out)
            counts[str(unique)] = {str(size): round(bits, 4) for size, bits in found.items()}
    TEXTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
