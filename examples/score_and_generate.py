"""Score a text with a trained model, and continue a prompt."""

import jepamba

lm = jepamba.load()  # the small model in the package; jepamba.load("runs/mine") is that of a run
score = lm.score("It was a cold day, and the children stayed at home.")
print(f"{score.bpb:.3f} bits per byte of {score.bytes:,} bytes")

prompt = "The function"
print(prompt + lm.generate(prompt, max_new_tokens=60, temperature=0.8, seed=1))
