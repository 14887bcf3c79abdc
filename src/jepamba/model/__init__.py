"""The language model of the artifact: Mamba-2 blocks in a U-Net, a tied embedding and a soft-capped head.

Read `language_model.py` first, then `mixer.py`, then `layers.py` and `output_head.py`.
"""

from jepamba.model.components import COMPONENTS, component_of, count_by_component
from jepamba.model.language_model import Activations, LanguageModel, State

__all__ = ["COMPONENTS", "Activations", "LanguageModel", "State", "component_of", "count_by_component"]
