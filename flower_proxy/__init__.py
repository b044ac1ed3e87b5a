"""A launcher for Flower, Celery's monitor, behind any reverse proxy.

`FlowerProxy` and `make_options` embed it in another asyncio program.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flower_proxy.app import FlowerProxy
    from flower_proxy.settings.loader import make_options

__version__ = "0.1.0"
__all__ = ["FlowerProxy", "__version__", "make_options"]

_MODULES = {"FlowerProxy": "flower_proxy.app", "make_options": "flower_proxy.settings.loader"}


def __getattr__(name: str) -> Any:
    # Importing Flower takes a third of a second, and most commands do not need it
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
