"""Encode large texts with the library gigatoken, with the same token ids."""
