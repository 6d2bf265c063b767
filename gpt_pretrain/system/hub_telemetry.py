"""Keep huggingface_hub from asking the hub for more than files."""

from __future__ import annotations


def disable_telemetry() -> None:
    """Leave out the part of huggingface_hub's requests that says which program has started this one.

    To write it, the library (2.4) asks the hub for a list of programs and of their environment variables. It reads an answer of
    any length for any time, and tells the hub which of these variables are set.
    """
    from huggingface_hub import constants

    constants.HF_HUB_DISABLE_TELEMETRY = True
