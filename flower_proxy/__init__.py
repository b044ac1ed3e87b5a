"""Flower, Celery's monitor, right at any URL and behind any reverse proxy.

`FlowerProxy` and `make_options` are what a program needs that has it inside.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flower_proxy.app import FlowerProxy
    from flower_proxy.settings.loader import make_options

__version__ = "0.1.0"
__all__ = ["FlowerProxy", "__version__", "make_options"]


def __getattr__(name: str) -> Any:
    # When they are asked for: they bring Flower with them, which takes a third of a second
    if name == "FlowerProxy":
        from flower_proxy.app import FlowerProxy

        return FlowerProxy
    if name == "make_options":
        from flower_proxy.settings.loader import make_options

        return make_options
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
