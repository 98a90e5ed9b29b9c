"""Which models can be served, what they need, which machines have it; and the server that serves them.

::

    Catalogue.builtin().get("phi-3-mini-4k-instruct")      what a preset is and asks for
    SkuTable.builtin("azure").get("Standard_NC6s_v3")      what an instance type has
    size(preset, sku, count)                               whether the one fits on the other, with its working
    image_for(preset), serving_command(preset)             what to run

Importing this package is cheap: names are resolved on first use, and nothing outside ``kaito_presets.inference`` needs
more than pydantic and PyYAML.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kaito_presets.catalogue import Catalogue
    from kaito_presets.datafile import DataFileError
    from kaito_presets.images import image_for, serving_command
    from kaito_presets.preset import Architecture, Image, Preset, Requirements, Source, Tuning
    from kaito_presets.sizing import Check, Sizing, fitting_skus, size
    from kaito_presets.skus import Sku, SkuTable

__all__ = [
    "Architecture",
    "Catalogue",
    "Check",
    "DataFileError",
    "Image",
    "Preset",
    "Requirements",
    "Sizing",
    "Sku",
    "SkuTable",
    "Source",
    "Tuning",
    "fitting_skus",
    "image_for",
    "serving_command",
    "size",
]

_HOME = {
    "Architecture": "preset",
    "Catalogue": "catalogue",
    "Check": "sizing",
    "DataFileError": "datafile",
    "Image": "preset",
    "Preset": "preset",
    "Requirements": "preset",
    "Sizing": "sizing",
    "Sku": "skus",
    "SkuTable": "skus",
    "Source": "preset",
    "Tuning": "preset",
    "fitting_skus": "sizing",
    "image_for": "images",
    "serving_command": "images",
    "size": "sizing",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
