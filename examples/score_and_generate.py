"""Score a text with a trained model, and continue a prompt.

python examples/score_and_generate.py README.md
"""

import sys
from pathlib import Path

import jepamba

path = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
if not path.is_file():
    sys.exit(f"{path}: no such file; give the path of a text")
lm = jepamba.load()  # the small model in the package; jepamba.load("runs/mine") is that of a run
score = lm.score(path.read_text(encoding="utf-8"), carry=True)
print(f"{score.bpb:.3f} bits per byte of {score.bytes:,} bytes")

prompt = "The function "
print(prompt + lm.generate(prompt, max_new_tokens=60, temperature=0.8, seed=1))
