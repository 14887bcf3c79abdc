#!/usr/bin/env bash
# One plan of the JEPA study, or best-levers (docs/studies.md), on the GPUs of this machine, continued from the records in the repository.
#
#   CORPUS=corpus scripts/jepa_study.sh PLAN [flags of `jepamba study run`, as --seeds 5 --stop-after 500]
#
# CORPUS holds train-0.txt.xz, val.txt.xz and sp8192.model. The runs are in runs/PLAN. Their records, the plan with the
# dial's choices and the report are copied to docs/results/jepa/PLAN (best-levers: docs/results/best-levers), and from there before the start.
# docs/results/jepa/runs.csv has the runs of all plans.
# Other settings: SHARDS (folder for the tokenized text), GPUS (default: all), OVERLAP (processes for each, 8), PYTHON.
set -euo pipefail
plan=${1:?the name of a plan}
shift
corpus=${CORPUS:?the folder with train-0.txt.xz, val.txt.xz and sp8192.model} python=${PYTHON:-python3}
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)} out=runs/$plan kept=docs/results/jepa/$plan
[ "$plan" != best-levers ] || kept=docs/results/$plan
case $plan in
  *bytes*) text=$corpus/train-0.txt.xz tokenizer=bytes shards=bytes ;;
  *many-epochs) text=little.txt tokenizer=$corpus/sp8192.model shards=little ;;
  *) text=$corpus/train-0.txt.xz tokenizer=$corpus/sp8192.model shards=bpe ;;
esac
shards=${SHARDS:-${TMPDIR:-/tmp}/jepamba-shards}/$shards
mkdir -p "$out" "$kept" "$(dirname "$shards")"
if [ ! -e "$shards/meta.json" ]; then
  if [ "$text" = little.txt ]; then
    text=$shards.txt # the first 2,055 documents, a tenth
    xz -dc "$corpus/train-0.txt.xz" | "$python" -c "import sys
sys.stdout.buffer.write(bytes(1).join(sys.stdin.buffer.read().split(bytes(1))[:2055]))" > "$text"
  fi
  "$python" -m jepamba data build "$text" --val "$corpus/val.txt.xz" --tokenizer "$tokenizer" --out "$shards"
fi
cp -r "$kept/." "$out/"
code=0
"$python" -m jepamba study run "$plan" --data.train "$shards" --out "$out" --gpus "$gpus" --overlap "${OVERLAP:-8}" "$@" || code=$?
(cd "$out" && find . -maxdepth 2 -type f \( -name 'seed-*.json' -o -name report.md -o -name report.json -o -name '*.svg' -o -name '*.csv' -o -name plan.toml \) |
  tar cf - -T -) | tar xf - -C "$kept"
sed -i "s#$(dirname "$shards")/#shards/#g" "$kept"/plan.toml "$kept"/report.* # no path of this machine
awk 'NR == 1 || FNR > 1' docs/results/jepa/*/runs.csv > docs/results/jepa/runs.csv
exit $code
