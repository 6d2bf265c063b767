"""Pretrain a GPT on raw text: python train.py [setting=value ...]; --help lists the settings."""

import signal

# Ctrl-C while the libraries load ends the program without a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import hydra
    from omegaconf import DictConfig

    from gpt_pretrain.commands.script import hydra_script
    from gpt_pretrain.commands.train import train
    from gpt_pretrain.system.checkout import CONF
except ModuleNotFoundError as error:
    raise SystemExit(
        f"train.py: {error}. Use the Python that has gpt-pretrain installed, such as .venv/bin/python. A copy of train.py "
        "outside of the source folder needs it too."
    ) from None


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def main(config: DictConfig) -> float:
    """Train, and return the best validation loss in nats per token."""
    return train(config)


if __name__ == "__main__":
    with hydra_script("train"):
        main()
