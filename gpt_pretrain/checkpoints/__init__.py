"""Read and write weights safely: this program's checkpoints, the formats of other programs, and the Hugging Face hub.

`checkpoint_file` keeps this program's checkpoints. `pretrained` loads the weights of any program: `serialization/` reads files of
tensors, `formats/` knows other programs' layouts, and `recognition/` finds the model in them. `export/` writes folders for
transformers.

Nothing here runs code from a file or trusts a size that a file states. The room knows neither Lightning nor Hydra: it turns files
into a `GPTModel` and back, and leaves it to training to decide when that happens.
"""
