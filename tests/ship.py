"""Puts a trained model into the package: `make shipped-model`.

    python tests/ship.py runs/shipped

The model is packed anew, so its file has the present format, with the score of a passage as a note. Both let
tests/test_shipped.py find out that the file is older than the code. The README gets a sample.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import jepamba
from jepamba.artifact import save_artifact
from jepamba.artifact.locate import SHIPPED

README = Path(__file__).resolve().parents[1] / "README.md"
MAX_BYTES = 2_000_000
SAMPLE = ["generate", "Once upon a time", "--tokens", "64", "--temperature", "0.7"]
TEXT = "trained on free English text, half of it Wikipedia (CC BY-SA 3.0); SOURCES.md lists every source and licence"
PASSAGE = """\
The old bridge over the river was built in the time of the first governor, when the road to the coast was little more
than a track for horses. It has five arches of grey stone, of which the second was rebuilt after the flood of 1871. The
town on the northern bank grew around a market that was held every week, and by the end of the century it had a school,
two churches and a railway station.

"You will find it changed," said the captain, and he looked at the water for some time before he went on. "My father
knew every family in these streets. Now there are people who have lived here for ten years, and I could not tell you
their names."

If the server does not answer, check that the service is running and that the port is open. The following command shows
the last lines of the log. The default value of this option is one minute; larger values are useful on slow networks.
"""
"""Of our own writing, so that nothing else decides its score."""


def main(source: str) -> None:
    """Pack the model that `jepamba.load` finds at `source` into the package, and renew the sample in the README."""
    trained = jepamba.load(source, "cpu")
    notes = {"text": TEXT, "passage_bpb": trained.score(PASSAGE).bpb}
    made = trained.artifact
    size = save_artifact(SHIPPED, made.model, made.run, made.tokenizer, made.temperature, notes)
    if size > MAX_BYTES:
        SHIPPED.unlink()
        sys.exit(f"{size:,} bytes: the model in the package may have {MAX_BYTES:,}")
    readme = README.read_text(encoding="utf-8")
    README.write_text(re.sub(SAMPLE_BLOCK, lambda found: found[1] + sample() + found[3], readme), encoding="utf-8")
    print(f"{SHIPPED}: {size:,} bytes, {notes['passage_bpb']:.4f} bits per byte of the passage")


SAMPLE_BLOCK = r"(?s)(<!-- sample of the model in the package -->\n```\n)(.*?)(```\n<!-- /sample -->)"


def sample() -> str:
    """Return the command of the README and what it prints."""
    done = subprocess.run([sys.executable, "-m", "jepamba", *SAMPLE], stdout=subprocess.PIPE, text=True, check=True)
    words = " ".join(f'"{word}"' if " " in word else word for word in SAMPLE)
    return f"$ jepamba {words}\n{done.stdout}"


if __name__ == "__main__":
    main(*sys.argv[1:])
