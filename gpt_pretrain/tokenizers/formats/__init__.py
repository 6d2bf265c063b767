"""Vocabularies of other programs: read their files, and bring them into the form of one tokenizer.json."""
