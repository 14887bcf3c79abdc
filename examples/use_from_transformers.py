"""Export a trained model for Hugging Face transformers, and use it there.

Needs the package transformers. Writes the folder exported-model, unless it exists.
"""

from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

import jepamba
from jepamba.export import export_transformers

folder = Path("exported-model")
if not folder.exists():
    # The small model in the package; jepamba.load("runs/mine") is that of a run.
    export_transformers(jepamba.load().artifact, folder)

# From here on jepamba is not needed. The folder contains the model's code, which transformers runs only with
# trust_remote_code=True.
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)

prompts = ["The function of a module is", "In the beginning"]
inputs = tokenizer(prompts, padding=True, return_tensors="pt")
loss = model(**inputs, labels=inputs["input_ids"]).loss.item()
print(f"{loss:.3f} nats per token of the prompts")
set_seed(1)
for ids in model.generate(**inputs, max_new_tokens=40):
    print(repr(tokenizer.decode(ids, skip_special_tokens=True)))
