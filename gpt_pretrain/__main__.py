"""Run `gpt-pretrain COMMAND`, also `python -m gpt_pretrain COMMAND`."""

import signal


def run() -> None:
    """Run the command; Ctrl-C while its modules load ends the program without a traceback."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from gpt_pretrain.commands.main import main

    main()


if __name__ == "__main__":
    run()
