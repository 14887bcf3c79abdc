#!/usr/bin/env bash
# The preset `best` on the GPUs of one host, packed, and scored on the whole validation text (docs/results/best-2gpu-600s.md).
#
#   CORPUS=corpus scripts/best.sh GPUS SECONDS SEED [flags of a config]
#
# CORPUS holds train/ (text), val.txt.xz and, if there is one, tokenizer.model; otherwise a tokenizer of 16,384 pieces is
# trained on train/. Repeated after an interruption, the command continues from the newest checkpoint.
# Other settings: OUT (default runs/best-GPUSgpu-SECONDSs-seed-SEED), SHARDS (tokenized text, default runs/best-shards),
# STOP_AFTER (seconds after which training is interrupted; 0: never), PYTHON.
set -euo pipefail
gpus=${1:?the number of GPUs} seconds=${2:?seconds of training} seed=${3:?a seed}
shift 3
corpus=${CORPUS:?the folder with train/ and val.txt.xz} python=${PYTHON:-python3} stop=${STOP_AFTER:-0}
out=${OUT:-runs/best-${gpus}gpu-${seconds}s-seed-$seed} shards=${SHARDS:-runs/best-shards}
if [ ! -e "$shards/meta.json" ]; then
  tokenizer=(--tokenizer bpe --vocab 16384)
  [ ! -e "$corpus/tokenizer.model" ] || tokenizer=(--tokenizer "$corpus/tokenizer.model")
  "$python" -m jepamba data build "$corpus/train" --val "$corpus/val.txt.xz" "${tokenizer[@]}" --out "$shards"
fi
if [ -e "$out/config.toml" ]; then
  command=(resume "$out")
else
  command=(train best --train.seconds "$seconds" --train.seed "$seed" --data.train "$shards" --out "$out" "$@")
fi
[ -e "$out/summary.json" ] || timeout -s INT "$stop" \
  "$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus" -m jepamba "${command[@]}"
"$python" -m jepamba eval "$out/artifact.jepa" --data "$corpus/val.txt.xz" --carry --json | tee "$out/carried.json"
