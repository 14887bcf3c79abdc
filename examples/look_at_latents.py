"""Find similar paragraphs by their latents, and plot the latents of a text.

    python examples/look_at_latents.py README.md

Writes latents.png.
"""

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch

import jepamba

path = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
if not path.is_file():
    sys.exit(f"{path}: no such file; give the path of a text")
text = path.read_text(encoding="utf-8")
lm = jepamba.load()  # the small model in the package; jepamba.load("runs/mine") is that of a run
paragraphs = [part for part in text.split("\n\n") if len(part) > 100]

# A latent h for each token of each paragraph, (tokens, d_model). Their mean stands for the paragraph; without the mean
# of all paragraphs, the cosine of two of them compares what they are about.
means = torch.stack([latents.mean(0) for latents in lm.latents(paragraphs)])
unit = torch.nn.functional.normalize(means - means.mean(0), dim=1)
similarity = unit @ unit.T - 2 * torch.eye(len(unit))
for index in similarity.amax(1).topk(min(3, len(paragraphs))).indices.tolist():
    nearest = int(similarity[index].argmax())
    print(f"{similarity[index, nearest]:.2f}  {paragraphs[index][:60]!r}\n      {paragraphs[nearest][:60]!r}\n")

# The two directions in which the latents of the whole text vary most. Row t is the latent after token t; the colour is
# how many bits the next token takes.
latents = lm.latents(text, carry=True)
bits = lm.score(text, carry=True).token_bits
centred = latents[:-1] - latents[:-1].mean(0)
_, spread, directions = torch.linalg.svd(centred, full_matrices=False)
x, y = (centred @ directions[:2].T).T
figure, axes = plt.subplots(figsize=(7, 6))
points = axes.scatter(x, y, c=np.clip(bits, 0, 12), s=4, cmap="viridis")
axes.set(xlabel="first principal component", ylabel="second principal component", title="Latents of a text, by token")
figure.colorbar(points, label="bits of the next token")
figure.savefig("latents.png", dpi=150)
share = float(spread[:2].square().sum() / spread.square().sum())
print(f"latents.png: {len(x):,} tokens; two of {latents.shape[1]} directions have {share:.0%} of the variance")
