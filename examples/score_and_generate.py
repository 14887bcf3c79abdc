"""Score a text with a trained artifact, and continue a prompt. Run `jepamba demo` first."""

from pathlib import Path

from jepamba.artifact import load_artifact
from jepamba.data import load_tokens
from jepamba.evaluate import score_carried
from jepamba.generate import generate

artifact = load_artifact(Path("runs/demo/artifact.jepa"))
data, temperature = artifact.run.data, artifact.temperature

tokens = load_tokens("README.md", artifact.tokenizer, data)
score = score_carried(artifact.model, tokens, data.seq_len, temperature=temperature, reset=data.reset)
print(f"{score.bpb:.3f} bits per byte of {score.bytes:,} bytes")

prompt = "The function "
text = generate(artifact.model, artifact.tokenizer, prompt, tokens=60, temperature=0.8 * temperature, seed=1)
print(prompt + "".join(text))
