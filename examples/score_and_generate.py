"""Score a text with a trained model, and continue a prompt. Run `jepamba demo` first."""

from pathlib import Path

import jepamba

lm = jepamba.load("runs/demo")
score = lm.score(Path("README.md").read_text(), carry=True)
print(f"{score.bpb:.3f} bits per byte of {score.bytes:,} bytes")

prompt = "The function "
print(prompt + lm.generate(prompt, max_new_tokens=60, temperature=0.8, seed=1))
