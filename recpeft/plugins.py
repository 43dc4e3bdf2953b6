"""Plug-ins: one addition is one file, and the file's name is the registry.

``load("adapters", "lora")`` imports ``adapters/lora.py``; a dotted name (``my_pkg.my_adapter``)
reaches a module outside the project the same way. Each plug-in holds its ``Config``.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import types
from functools import cache

from recpeft import trust
from recpeft.config import Config
from recpeft.errors import RecpeftError, shown


def names(folder: str) -> list[str]:
    """List the plug-ins of ``folder`` (a package, such as ``adapters``), sorted, without ``_private`` files."""
    package = importlib.import_module(folder)
    return sorted(
        module.name
        for module in pkgutil.iter_modules(package.__path__)
        if not module.name.startswith("_") and not module.ispkg
    )


def load(folder: str, name: str) -> types.ModuleType:
    """Import the plug-in ``name`` of ``folder``, or the module a dotted ``name`` points at.

    Raises:
        RecpeftError: there is no such plug-in (the valid names are listed), or a record names a module that is not
            trusted.
    """
    if "." in name:
        trust.check(name, f"the module {shown(name)[1:-1]}")
    return _load(folder, name)


@cache  # a study of a thousand cells asks ten thousand times
def _load(folder: str, name: str) -> types.ModuleType:
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise  # the module is there; something it needs is not
            raise RecpeftError(
                f"no module named {shown(name)} can be imported; install it or put its folder on PYTHONPATH."
            ) from None
    valid = names(folder)
    if name not in valid:
        raise RecpeftError(
            f"unknown name {shown(name)} in {folder}; choose one of {', '.join(valid)}, "
            "or give a dotted module name for a plug-in of your own."
        )
    return importlib.import_module(f"{folder}.{name}")


def config_class(folder: str, name: str) -> type[Config]:
    """Return the ``Config`` of a plug-in.

    Raises:
        RecpeftError: no such plug-in, or it has no ``Config``.
    """
    module = load(folder, name)
    found = getattr(module, "Config", None)
    if not (isinstance(found, type) and issubclass(found, Config)):
        raise RecpeftError(f"{module.__name__} has no class Config(recpeft.config.Config); add one to it.")
    return found
