"""jepamba: tiny text language models as LeWorldModels on a Mamba-2 backbone, judged by bits per byte.

`jepamba.load` and `jepamba.train` return a `jepamba.TextModel`; see docs/python.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jepamba.api import TextModel as TextModel
    from jepamba.api import load as load
    from jepamba.api import train as train
    from jepamba.errors import UserError as UserError
    from jepamba.evaluate.text_score import TextScore as TextScore

__version__ = "0.1.0"
__all__ = ["TextModel", "TextScore", "UserError", "__version__", "load", "train"]


def __getattr__(name: str) -> Any:
    """Import the API when it is first used, so that `import jepamba` does not import PyTorch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    if name == "train":
        # The package of this name, which is callable. An import of it sets the attribute in any case.
        return importlib.import_module("jepamba.train")
    return getattr(importlib.import_module("jepamba.errors" if name == "UserError" else "jepamba.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
