"""Run `python -m gpt_pretrain COMMAND`."""

from gpt_pretrain.commands.main import main

if __name__ == "__main__":
    main()
