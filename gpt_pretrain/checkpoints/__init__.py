"""Read and write weights safely: this program's checkpoints, the formats of other programs, and the Hugging Face hub.

Nothing here runs code from a file or trusts a size that a file states. The room knows neither Lightning nor Hydra: it turns files
into a `GPTModel` and back, and leaves it to training to decide when that happens.
"""
