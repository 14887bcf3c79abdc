"""What a text loses in its tokens: line breaks and capitals to a normalizer, unknown characters to `<unk>`."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import zip_longest


@dataclass(frozen=True)
class Unrestored:
    """The part of a text that decoding its tokens does not give back."""

    bytes: int = 0
    """UTF-8 bytes of the characters that the decoded text lacks, at least 1 if it differs at all."""
    example: str = ""
    """The first difference, as `'original' becomes 'decoded'`. Empty if there is none."""

    def __add__(self, other: Unrestored) -> Unrestored:
        return Unrestored(self.bytes + other.bytes, self.example or other.example)

    def in_words(self, text_bytes: int) -> str:
        """Describe the loss in a text of `text_bytes` bytes for a message. Returns an empty text if nothing is lost."""
        if not self.bytes:
            return ""
        return f"the tokenizer cannot restore {self.bytes:,} of {text_bytes:,} bytes; first, {self.example}"


def bpb_unit(counted: object) -> str:
    """Return the unit of a score whose `counted` is this: shards without a record of their text have decoded bytes."""
    return "BPB by decoded bytes" if counted == "decoded" else "BPB"


def compare(text: str, decoded: bytes) -> Unrestored:
    """Return what of `text` is not in `decoded`, which its tokens decode to."""
    raw = text.encode("utf-8")
    if raw == decoded:
        return Unrestored()
    found = decoded.decode("utf-8", errors="replace")
    lost = sum(len(character.encode()) * count for character, count in (Counter(text) - Counter(found)).items())
    first = next(at for at, (a, b) in enumerate(zip_longest(text, found)) if a != b)
    start = max(first - 8, 0)
    return Unrestored(max(lost, 1), f"{text[start : first + 12]!r} becomes {found[start : first + 12]!r}")
