#!/usr/bin/env bash
# The published setting, measured: preset submission-bpe on the GPUs of one host for 600 seconds.
#
#   CORPUS=corpus scripts/ten_minutes_8gpu.sh [GPUS]        GPUS: 8 unless said otherwise
#
# CORPUS holds train/ (text parts 0 to 2, or shards), val (val.txt.xz, or shards) and sp8192.model. Other settings:
# OUT (default runs/ten-minutes-GPUSgpu), BUDGET (seconds, default 600), PYTHON; flags of a config may follow GPUS.
# Writes into OUT: the run; one.json and all.json, the step by part on one GPU and on all (bench/scaling.py); launch.txt;
# carried.json. Prints the figures of docs/results/ten-minutes-2gpu.md.
set -euo pipefail
gpus=${1:-8}
shift || true
corpus=${CORPUS:?the folder with train/, val and sp8192.model} budget=${BUDGET:-600} python=${PYTHON:-python}
out=${OUT:-runs/ten-minutes-${gpus}gpu}
val=$(ls -d "$corpus"/val* | head -n 1)
data=(--data.train "$corpus/train" --data.val "$val" --data.tokenizer "$corpus/sp8192.model")
parallel=("$python" -m torch.distributed.run --standalone --nproc-per-node "$gpus")
[ ! -e "$out" ] || { echo "$out is there already; remove it, or choose another OUT" >&2; exit 2; }
mkdir -p "$out.measured"

CUDA_VISIBLE_DEVICES=0 "$python" bench/scaling.py submission-bpe "${data[@]}" "$@" \
  --bench-out "$out.measured/one.json"
"${parallel[@]}" bench/scaling.py submission-bpe "${data[@]}" "$@" \
  --bench-against "$out.measured/one.json" --bench-out "$out.measured/all.json"

launched=$(date +%s%N)
(
  until grep -qs '"kind": "step"' "$out/metrics.jsonl"; do sleep 0.1; done
  echo "from launch to the first step's end: $((($(date +%s%N) - launched) / 10**6)) ms" > "$out.measured/launch.txt"
) &
waiting=$!
trap 'kill $waiting 2>/dev/null || true' EXIT
"${parallel[@]}" -m jepamba train submission-bpe "${data[@]}" --train.steps 0 --train.seconds "$budget" --out "$out" "$@"
wait $waiting
mv "$out.measured"/* "$out"/ && rmdir "$out.measured"
"$python" -m jepamba eval "$out/artifact.jepa" --data "$val" --carry --temperature 1 --json > "$out/carried.json"
"$python" - "$out" "$budget" << 'END'
import json, sys
from pathlib import Path
out, budget = Path(sys.argv[1]), float(sys.argv[2])
summary, carried = json.loads((out / "summary.json").read_text()), json.loads((out / "carried.json").read_text())
steps = [record for line in (out / "metrics.jsonl").open() if (record := json.loads(line))["kind"] == "step"]
print((out / "launch.txt").read_text().strip())
print(f"{summary['steps']} steps, {steps[-1]['epoch']:.2f} epochs, {summary['seconds'] - budget:+.2f} s over the budget")
sliding = (summary["bpb_sliding"] or {}).get("bpb")
print(f"BPB plain {summary['bpb_plain']['bpb']:.4f}, carried {carried['bpb']:.4f}, both at temperature 1")
print(f"at temperature {summary['temperature']:.2f}: plain {summary['bpb_calibrated']['bpb']:.4f}, sliding {sliding}")
print(f"artifact {summary['artifact_bytes']:,} bytes")
END
