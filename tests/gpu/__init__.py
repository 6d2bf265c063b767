"""Tests on a GPU: `make check-gpu` runs them, and they are skipped where there is none."""
