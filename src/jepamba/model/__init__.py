"""The model that is kept: Mamba-2 blocks in a U-Net between a tied embedding and a soft-capped head.

Read `language_model.py` first, then `mixer.py`, then `layers.py`, `head.py` and `loss.py`.
"""

from jepamba.model.language_model import LanguageModel, State
from jepamba.model.parts import PARTS, part_of, parts

__all__ = ["PARTS", "LanguageModel", "State", "part_of", "parts"]
