"""The signals that ask a program to stop. While libraries load, a first Ctrl-C waits until the current module is complete.

An interrupted import cannot be repeated. NumPy, for example, then refuses to load at all, but the summary of an interrupted sweep
needs it. Some modules take many seconds to load, and nobody waits that long for a summary. A second Ctrl-C therefore ends the
process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

IMPORT_MACHINERY = "<frozen importlib"
RETRY_SECONDS = 0.05
PATIENCE = 20  # repetitions after which the user learns the reason for waiting
WAITING = b"\nStopping as soon as the libraries are loaded. Press Ctrl-C again to end at once.\n"

_is_waiting = False  # whether a module is still loading
_repetitions = 0


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask a run to stop: Ctrl-C, a scheduler's, and a closed terminal's unless nohup ignores it."""
    found = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]
    return [one for one in found if one.name != "SIGHUP" or signal.getsignal(one) is not signal.SIG_IGN]


def handle_interrupts() -> None:
    """Make Ctrl-C raise KeyboardInterrupt, but never in the middle of an import."""
    signal.signal(signal.SIGINT, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or try again later during an import. End the process if the user asks again before that.

    Raises:
        KeyboardInterrupt: If no module is being imported.
    """
    global _is_waiting, _repetitions
    if not _is_importing(frame):
        _is_waiting, _repetitions = False, 0
        raise KeyboardInterrupt
    if _is_waiting:
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    if _repetitions == PATIENCE:
        os.write(2, WAITING)
    _is_waiting, _repetitions = True, _repetitions + 1
    timer = threading.Timer(RETRY_SECONDS, _repeat, [signum])
    timer.daemon = True
    timer.start()


def _repeat(signum: int) -> None:
    global _is_waiting
    _is_waiting = False
    os.kill(os.getpid(), signum)


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORT_MACHINERY):
            return True
        frame = frame.f_back
    return False
