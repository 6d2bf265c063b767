"""Check the journal of a search, which anybody may have written, before Optuna replays it without any limit.

For each line, Optuna copies all values of the same kind that the trial or the study has so far, and it looks for a parameter in
all trials. So the time may grow with the square of the lines. This cost is counted here.

Source: optuna/storages/journal/_storage.py of Optuna 4.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from gpt_pretrain.system.json_files import parse_json
from gpt_pretrain.system.reading import DamagedFileError, read_bytes
from gpt_pretrain.system.reading_cost import explained_by_own_size
from gpt_pretrain.system.shown_values import short_repr

# A trial takes about ten lines of 200 bytes, and one for each epoch.
MAX_JOURNAL_BYTES, MAX_LINE_BYTES, MAX_LINE_VALUES = 50_000_000, 1_000_000, 100_000
MAX_COST = 500_000_000  # copied values, about five seconds; a thousand trials of a thousand epochs cost as much
SEARCH_COST = 10  # copied values that take as long as looking for a parameter in a trial
MAX_STEP = 10**15  # Larger whole numbers can all have the same hash.
MAX_GIVEN = 1000  # values of each kind with which a trial begins
# Optuna's numbers for the actions of lines.
CREATE_STUDY, CREATE_TRIAL, SET_PARAMETER, SET_STATE, SET_INTERMEDIATE = 0, 4, 5, 6, 7
OF_STUDY = (2, 3)
ALLOWED = {0, 2, 3, 4, 5, 6, 7, 8, 9}  # all but the deletion of a study, which this program never does
WAITING = 4  # a state of a trial
UNFINISHED = (0, WAITING)  # a running or a waiting trial


@explained_by_own_size
def check_journal(journal: Path) -> None:
    """Check that a journal can be replayed in reasonable time. An incomplete last line is left out.

    Raises:
        OSError: If it cannot be read.
        DamagedFileError: If replaying it would take too long, or it is no journal of a search.
    """
    replay = _Replay()
    for line in read_bytes(journal, max_bytes=MAX_JOURNAL_BYTES).splitlines(keepends=True):
        if len(line) > MAX_LINE_BYTES:
            raise DamagedFileError(f"a line has more than {MAX_LINE_BYTES:,} bytes")
        if line.endswith(b"\n"):  # A process may have been killed while it wrote the last line.
            replay.add(parse_json(line, max_values=MAX_LINE_VALUES))


class _Replay:
    """Counts the values that Optuna would copy and search."""

    def __init__(self) -> None:
        self._study: Any = None  # the name of the only study
        self._n_trials = self._cost = 0
        self._finished, self._waiting = set[int](), set[int]()
        self._values = Counter[tuple[int, int]]()  # number of values by their kind, and their trial
        self._first_with: dict[str, int] = {}  # the first trial with each parameter, where Optuna finds it

    def add(self, entry: dict[str, Any]) -> None:
        """Count a line.

        Raises:
            DamagedFileError: If this program's searches write no such line, or the lines so far cost too much.
        """
        kind, study, trial = entry.get("op_code"), entry.get("study_id", 0), entry.get("trial_id", 0)
        if type(kind) is not int or kind not in ALLOWED or type(study) is not int or study != 0 or type(trial) is not int:
            raise DamagedFileError("a line holds an operation that no search of this program writes")
        if kind == CREATE_STUDY:
            name = entry.get("study_name")
            if not isinstance(name, str) or self._study not in (None, name):
                raise DamagedFileError("it has several studies")
            self._study = name
        elif self._study is None:
            raise DamagedFileError("it does not begin with a study")
        elif kind == CREATE_TRIAL:
            self._add_trial(entry)
        elif kind in OF_STUDY or 0 <= trial < self._n_trials:  # others have no effect
            self._add_value(entry, kind, 0 if kind in OF_STUDY else trial)
        # To take one of the waiting trials, Optuna looks for it in all trials.
        if self._cost + SEARCH_COST * len(self._waiting) * self._n_trials > MAX_COST:
            raise DamagedFileError("reading it would take far longer than a file of its size should")

    def _add_trial(self, entry: dict[str, Any]) -> None:
        given = [entry.get(name, {}) for name in ("params", "distributions", "user_attrs", "system_attrs", "intermediate_values")]
        if not all(isinstance(values, dict) and len(values) <= MAX_GIVEN for values in given):
            raise DamagedFileError(f"a trial begins with more than {MAX_GIVEN:,} values")
        for name in given[0]:
            self._first_with.setdefault(name, self._n_trials)
        self._note_state(self._n_trials, entry.get("state", UNFINISHED[0]))
        self._n_trials += 1

    def _add_value(self, entry: dict[str, Any], kind: int, trial: int) -> None:
        if kind == SET_STATE:
            self._note_state(trial, entry.get("state"))
            return
        if kind == SET_INTERMEDIATE and (type(step := entry.get("step")) is not int or abs(step) > MAX_STEP):
            raise DamagedFileError(f"the step of a value is {short_repr(entry.get('step'))}, not a number of a step")
        self._cost += self._values[kind, trial]
        self._values[kind, trial] += 1
        if kind == SET_PARAMETER:
            name = str(entry.get("param_name"))
            self._cost += SEARCH_COST * self._first_with.get(name, self._n_trials)
            if trial not in self._finished:
                self._first_with.setdefault(name, trial)

    def _note_state(self, trial: int, state: Any) -> None:
        if state == WAITING:
            self._waiting.add(trial)
        else:
            self._waiting.discard(trial)
        if state not in UNFINISHED:
            self._finished.add(trial)
