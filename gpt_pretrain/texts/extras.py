"""The error for packages that only some inputs need."""

from gpt_pretrain.errors import UserError


def missing_extra(package: str) -> UserError:
    """Return the error for a missing package of the extra `corpora`."""
    return UserError(f'This input needs the package {package}, which is not installed. Run: pip install "gpt-pretrain[corpora]"')
