"""Models on the Hugging Face hub: push one with a model card, pull one into a folder."""

from jepamba.hub.transfer import CARD, Pushed, pull, push

__all__ = ["CARD", "Pushed", "pull", "push"]
