"""The signals that ask a program to stop. While libraries load, a first Ctrl-C waits until the current module is complete.

An interrupted import cannot be repeated. NumPy, for example, then refuses to load at all, but the summary of an interrupted sweep
needs it. Some modules take many seconds to load, and nobody waits that long for a summary. A second Ctrl-C therefore ends the
process at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

IMPORT_MACHINERY = "<frozen importlib"
RETRY_SECONDS = 0.05
PATIENCE = 20  # repetitions after which the user learns the reason for waiting
WAITING = b"\nStopping as soon as the libraries are loaded. Press Ctrl-C again to end at once.\n"

STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP", "SIGXCPU")  # names, since the refusal of Windows imports this
STOP_SHARE, STOP_SECONDS = 10, 60  # of a limit of processor time: its tenth, at most a minute of each core, is left for saving

_is_waiting = False  # whether a module is still loading
_repetitions = 0


def stop_signals() -> list[signal.Signals]:
    """Return the signals that ask a run to stop.

    They come from Ctrl-C, a scheduler, a limit of processor time, and a closed terminal unless nohup ignores it.
    """
    found = [signal.Signals[name] for name in STOP_SIGNALS]
    return [one for one in found if one != signal.SIGHUP or signal.getsignal(one) is not signal.SIG_IGN]


@contextmanager
def exit_on_signals() -> Iterator[None]:
    """Make the signals that would kill the process raise SystemExit during the block, so that the block can note its end.

    Ctrl-C and signals that have a handler already stay as they are.
    """
    killing = [one for one in stop_signals() if signal.getsignal(one) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        killing = []
    own = os.getpid()

    def leave(signum: int, _frame: FrameType | None) -> None:
        if os.getpid() != own:  # a forked process, which has nothing to note
            os._exit(128 + signum)
        if signum == signal.SIGXCPU:
            use_all_time()
        with suppress(OSError):  # The terminal may be gone.
            os.write(2, f"\nStopped by {signal.Signals(signum).name}.\n".encode())
        sys.exit(128 + signum)

    for signum in killing:
        signal.signal(signum, leave)
    try:
        yield
    finally:
        for signum in killing:
            signal.signal(signum, signal.SIG_DFL)


def leave_time_to_stop() -> bool:
    """Have the system ask this process to stop some time before it reaches its limit of processor time.

    `ulimit -t` sets the limit at which the system asks and the limit at which it kills to the same number.

    Returns:
        Whether the first of these limits was changed.
    """
    import resource  # missing on Windows, which is refused after this module is loaded

    asks, kills = resource.getrlimit(resource.RLIMIT_CPU)
    if kills == resource.RLIM_INFINITY or asks not in (kills, resource.RLIM_INFINITY):
        return False
    margin = min(kills // STOP_SHARE, STOP_SECONDS * (os.cpu_count() or 1))
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (max(kills - max(margin, 1), 1), kills))
        return True
    return False


def use_all_time() -> None:
    """Keep the system from asking this process to stop, as it does each second from the limit on, while results are written."""
    import resource

    kills = resource.getrlimit(resource.RLIMIT_CPU)[1]
    with suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (kills, kills))


def handle_interrupts() -> None:
    """Make Ctrl-C raise KeyboardInterrupt, but never in the middle of an import."""
    signal.signal(signal.SIGINT, _interrupt)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, or try again later during an import. End the process if the user asks again before that.

    Raises:
        KeyboardInterrupt: If no module is being imported.
    """
    global _is_waiting, _repetitions
    if not is_importing(frame):
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


def is_importing(frame: FrameType | None) -> bool:
    """Return True if the code of a frame runs because a module is being imported."""
    while frame is not None:
        if frame.f_code.co_filename.startswith(IMPORT_MACHINERY):
            return True
        frame = frame.f_back
    return False
