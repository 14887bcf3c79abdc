#!/usr/bin/env bash
# One plan of the JEPA study, or one of those named best-* (docs/studies.md), on the GPUs of this machine, continued from the records in the repository.
#
#   CORPUS=corpus scripts/jepa_study.sh PLAN [flags of `jepamba study run`, as --seeds 5 --stop-after 500]
#
# CORPUS holds train-0.txt.xz, val.txt.xz and sp8192.model. The runs are in runs/PLAN. Their records, the plan with the
# dial's choices and the report are copied to docs/results/jepa/PLAN (best-*: docs/results/PLAN), and from there before the start.
# docs/results/jepa/runs.csv has the runs of all plans.
# Other settings: SHARDS (folder for the tokenized text), GPUS (default: all), OVERLAP (processes for each; fewer for long
# runs, because a process that waits for its turn ends late), PYTHON, and LATENTS=1: afterwards measure the latents of seed 1 of each arm, as far as its folder is there.
set -euo pipefail
plan=${1:?the name of a plan}
shift
corpus=${CORPUS:?the folder with train-0.txt.xz, val.txt.xz and sp8192.model} python=${PYTHON:-python3}
export PYTHONPATH=${PYTHONPATH:-src}
out=runs/$plan kept=docs/results/jepa/$plan limit=400000 overlap=8
[[ $plan != best-* ]] || kept=docs/results/$plan
case $plan in
  jepa-bytes-* | jepa-nextlat-bytes-* | best-bytes) text=$corpus/train-0.txt.xz tokenizer=bytes shards=bytes limit=1600000 ;;
  jepa-many-epochs) text=little.txt tokenizer=$corpus/sp8192.model shards=little ;;
  jepa-bpe-* | jepa-forms-* | jepa-nextlat-* | jepa-h-* | jepa-published-* | best-levers | best-rates-*) text=$corpus/train-0.txt.xz tokenizer=$corpus/sp8192.model shards=bpe ;;
  *) echo "$plan: not a plan of the JEPA study (docs/studies.md)" >&2; exit 2 ;;
esac
case $plan in
  *-60 | *-60-more | jepa-many-epochs) overlap=4 ;;
  *-240) overlap=2 ;;
esac
[ -e "src/jepamba/study/plans/$plan.toml" ] || { echo "$plan: there is no such plan; see: jepamba study plans" >&2; exit 2; }
gpus=${GPUS:-$(nvidia-smi --list-gpus | wc -l)}
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

keep() { # what a repository keeps of the study, also after an interruption
  (cd "$out" && find . -maxdepth 2 -type f \( -name 'seed-*.json' -o -name report.md -o -name report.json -o -name '*.svg' -o -name '*.csv' -o -name plan.toml -o -name 'latents-*.json' \) |
    tar cf - -T -) | tar xf - -C "$kept"
  for file in "$kept"/plan.toml "$kept"/report.*; do
    [ ! -e "$file" ] || sed -i "s#$(dirname "$shards")/#shards/#g" "$file" # no path of this machine
  done
  awk 'NR == 1 || FNR > 1' docs/results/jepa/*/runs.csv > runs/all.csv && mv runs/all.csv docs/results/jepa/runs.csv || true
}
trap keep EXIT
cp -r "$kept/." "$out/"
code=0
"$python" -m jepamba study run "$plan" --data.train "$shards" --out "$out" --gpus "$gpus" --overlap "${OVERLAP:-$overlap}" "$@" || code=$?
if [ "${LATENTS:-}" = 1 ] && [ $code != 130 ]; then
  for run in "$out"/*/seed-1/; do
    arm=$(basename "$(dirname "$run")")
    for latent in h z; do
      measured=$out/latents-$arm-$latent.json
      [ -e "$run/artifact.jepa" ] && [ ! -e "$measured" ] || continue
      [ $latent = h ] || [ -e "$run/heads.safetensors" ] || continue
      "$python" -m jepamba latents "$run" --data "$shards" --split val --latent $latent --limit $limit --carry --measure --probe \
        --json -o "$out/latents.safetensors" > "$measured.part" && mv "$measured.part" "$measured" || code=1
    done
  done
fi
exit $code
