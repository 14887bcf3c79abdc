"""Export a trained model for Hugging Face transformers, and use it there. Run `jepamba demo` first.

Needs the package transformers. Writes the folder exported-model.
"""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from jepamba.artifact import load_artifact
from jepamba.export import export_transformers

folder = Path("exported-model")
export_transformers(load_artifact(Path("runs/demo/artifact.jepa")), folder)

# From here on jepamba is not needed. The folder has the code of the model, which transformers runs only if it may.
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

prompts = ["The function of a module is", "In the beginning"]
inputs = tokenizer(prompts, padding=True, return_tensors="pt")
loss = model(**inputs, labels=inputs["input_ids"]).loss.item()
print(f"{loss:.3f} nats per token of the prompts")
set_seed(1)
for ids in model.generate(**inputs, max_new_tokens=40):
    print(repr(tokenizer.decode(ids, skip_special_tokens=True)))
