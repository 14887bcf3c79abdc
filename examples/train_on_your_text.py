"""Train a model on a text file, continue prompts, and print the bits of each token.

    python examples/train_on_your_text.py input.txt 120

The second argument is the training time in seconds (default: 60). Without a file, the text is that of the demo.
"""

import sys

import jepamba

text = sys.argv[1] if len(sys.argv) > 1 else "stdlib"
seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 60

# The preset `quick` is for two CPU cores; `best` chooses its own settings for a GPU. The run holds out a tenth of the
# text, and its folder has curves, scores and samples in report.html.
try:
    lm = jepamba.train("quick", data={"train": text}, train={"seconds": seconds})
except jepamba.UserError as error:
    sys.exit(str(error))

print(lm)
for prompt in ("The", "In"):
    print(prompt + lm.generate(prompt, max_new_tokens=60, temperature=0.8, seed=1))

# The bits of each token show what the model finds hard.
score = lm.score("This sentence is about the weather, and this one about xylophones.")
for piece, bits in zip(score.token_bytes, score.token_bits, strict=True):
    print(f"{bits:6.2f} bits  {piece.decode(errors='replace')!r}")
print(f"{score.bpb:.3f} bits per byte")
