"""Measure how well models predict a text: python evaluate.py [setting=value ...]; --help lists the settings."""

import signal

# Ctrl-C while the libraries load ends the program without a traceback.
if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)

try:
    import hydra
    from omegaconf import DictConfig

    from gpt_pretrain.commands.evaluate import evaluate_models
    from gpt_pretrain.commands.script import hydra_script
    from gpt_pretrain.system.checkout import CONF
except ModuleNotFoundError as error:
    raise SystemExit(
        f"evaluate.py: {error}. Use the Python that has gpt-pretrain installed, such as .venv/bin/python. A copy of evaluate.py "
        "outside of the source folder needs it too."
    ) from None


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="evaluate")
def main(config: DictConfig) -> None:
    """Print the losses of models on a text."""
    evaluate_models(config)


if __name__ == "__main__":
    with hydra_script("evaluate"):
        main()
