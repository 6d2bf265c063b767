"""Export a model as a folder that transformers opens: weights, tokenizer and model card."""
