"""Import what is optional, or say what to install."""

from importlib import import_module
from types import ModuleType

IO_EXTRA = "'cupy_lstm[io]'"
"""What installs the packages that files need."""


def optional_module(name: str, purpose: str, install: str) -> ModuleType:
    """Return the module called `name`.

    Parameters
    ----------
    name : str
        Of the module, with dots.
    purpose : str
        What needs it, for the message: ``"to_torch"``.
    install : str
        What installs it, for the message: what follows ``pip install``.

    Raises
    ------
    ImportError
        If it cannot be imported; the message says what to install.
    """
    try:
        return import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"{purpose} needs {package}: pip install {install}; importing it failed with: {error}"
        ) from error
