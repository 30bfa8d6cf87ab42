#!/usr/bin/env bash
# The example programs as a person or a script calls them: results on stdout, exit codes, errors.
#
#   tests/programs/run.sh BUILD       77 where SmolLM2 is not there (RAPT_SMOLLM2, or the cache folder)
set -uo pipefail
programs=${1:?the build folder}/examples
model=${RAPT_SMOLLM2:-${XDG_CACHE_HOME:-$HOME/.cache}/rapt/SmolLM2-135M-Instruct.Q4_1.gguf}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=0
fail() { printf 'FAILED: %s\n' "$*"; failed=$((failed + 1)); }

# expect_code CODE PART COMMAND...: exits with CODE, and stderr is one line that holds PART.
expect_code() {
  local code=$1 part=$2 got
  shift 2
  "$@" >"$scratch/out" 2>"$scratch/err" </dev/null
  got=$?
  [ $got = "$code" ] || fail "$* exits with $got, expected $code: $(cat "$scratch/err")"
  grep -qF -- "$part" "$scratch/err" || fail "$* says '$(cat "$scratch/err")', expected '$part'"
  [ "$code" = 0 ] || [ "$(wc -l <"$scratch/err")" = 1 ] || fail "$* says more than one line"
}
# expect_out PART COMMAND...: exits with 0, and stdout holds PART.
expect_out() {
  local part=$1 out
  shift
  out=$("$@" 2>"$scratch/err" </dev/null) || fail "$* exits with $?: $(cat "$scratch/err")"
  [[ $out == *"$part"* ]] || fail "$* prints '$out', expected '$part'"
}

for program in generate tokenize perplexity attention convert train; do
  expect_out "--" "$programs/$program" --help
  expect_code 2 "--bad-flag" "$programs/$program" --model x --out y --bad-flag
done
expect_code 2 "is required" "$programs/generate" --model x

# train: 20 steps are 10 and 10 more; its files; what it refuses.
for i in $(seq 300); do echo "$i: to be or not to be, that is question $((i * 7919 % 1000))"; done >"$scratch/text"
train=("$programs/train" --data "$scratch/text" --vocab 290 --d-model 32 --layers 2 --heads 4 --batch 2 --seq 32
  --steps 20 --warmup 4 --checkpoint-every 7 --validate-every 10 --threads 1)
for dtype in fp32 bf16 fp16; do
  out=$scratch/$dtype
  expect_out '"step":20' "${train[@]}" --dtype $dtype --out "$out" --json
  expect_out '"step":10' "${train[@]}" --dtype $dtype --out "$out.2" --stop-after 10 --json
  expect_out '"step":20' "$programs/train" --out "$out.2" --resume --json
  for file in model.safetensors trainer.safetensors trainer.json config.json tokenizer.json; do
    cmp -s "$out/latest/$file" "$out.2/latest/$file" || fail "train --dtype $dtype: 10 + 10 steps differ from 20 in $file"
  done
done
[ "$(grep -c '"loss"' "$scratch/fp32/log.jsonl")" = 20 ] || fail "train logs $(cat "$scratch/fp32/log.jsonl")"
grep -q '"step":20,"loss":[0-9.]*,"lr":[0-9.e-]*,"grad_norm":[0-9.]*,"tokens":64,"seconds":[0-9.e-]*,"scale":1}' \
  "$scratch/fp32/log.jsonl" || fail "a line of the log: $(tail -1 "$scratch/fp32/log.jsonl")"
grep -q '"step":10,"validation_loss"' "$scratch/fp32/log.jsonl" || fail "train logs no validation"
grep -q '"scale":65536' "$scratch/fp16/log.jsonl" || fail "fp16 has no loss scale"
grep -q '</svg>' "$scratch/fp32/loss.svg" || fail "train draws no loss curve"
expect_out "" "$programs/generate" --model "$scratch/fp32/latest" --prompt "to be" --max-new-tokens 3
expect_code 2 "holds a run" "${train[@]}" --out "$scratch/fp32"
expect_code 2 "lr is 0.001, expected 0.5" "${train[@]}" --out "$scratch/fp32" --resume --lr 0.5
expect_code 2 "dtype is f32, expected bf16" "${train[@]}" --out "$scratch/fp32" --resume --dtype bf16
expect_code 2 "--data is required" "$programs/train" --out "$scratch/none"
expect_code 2 "expected a divisor" "${train[@]}" --out "$scratch/none" --kv-heads 3
expect_code 2 "no-such-text" "$programs/train" --data no-such-text --out "$scratch/none"
printf '{"steps": 3, "d_model": 16, "heads": 2, "attention": "swa", "window": 8, "vocab": 270}' >"$scratch/config.json"
expect_out '"step":3' "$programs/train" --config "$scratch/config.json" --data "$scratch/text" --out "$scratch/swa" \
  --layers 1 --seq 16 --batch 1 --json
grep -q '"sliding_window": 8' "$scratch/swa/latest/config.json" || fail "train --attention swa: $(cat "$scratch/swa/latest/config.json")"
printf '{"step": 3}' >"$scratch/config.json"
expect_code 2 "step" "$programs/train" --config "$scratch/config.json" --data "$scratch/text" --out "$scratch/none"
for form in qwen3 gemma3 gpt mistral; do
  expect_out '"step":2' "${train[@]}" --form $form --attention mqa --out "$scratch/$form" --stop-after 2 --sample-every 2 --recompute --json
done
head -c 3000 "$scratch/fp32/latest/trainer.safetensors" >"$scratch/cut"
cp "$scratch/cut" "$scratch/fp32/latest/trainer.safetensors"
expect_code 2 "trainer.safetensors" "${train[@]}" --out "$scratch/fp32" --resume

# The model that comes with rapt: no flag, no download.
expect_out "" "$programs/generate" --prompt "ROMEO:" --max-new-tokens 12 --temperature 0
[ "$("$programs/generate" --prompt "ROMEO:" --max-new-tokens 12 --temperature 0 2>&1 | wc -c)" -gt 12 ] || fail "the embedded model says nothing"
expect_code 2 "no-such-file" "$programs/generate" --model no-such-file --prompt x
printf 'GGUF\3\0\0\0' >"$scratch/short.gguf"
expect_code 2 "short.gguf" "$programs/generate" --model "$scratch/short.gguf" --prompt x
expect_code 2 "valid UTF-8" "$programs/generate" --model no-such-file --prompt $'a\xff'
expect_code 2 "expected a divisor" "$programs/attention" --heads 3
expect_out "[2, 64, 256] -> [2, 64, 256]" "$programs/attention" --gqa --efficient_mha
expect_out '"form":"swa"' "$programs/attention" --swa --json

if [ ! -e "$model" ]; then
  echo "SmolLM2 is not here: the programs were tested without a model"
  [ $failed = 0 ] && exit 77
  exit 1
fi
prompt="The capital of France is"
generate=("$programs/generate" --model "$model" --temperature 0)
expect_out " Paris." "${generate[@]}" --prompt "$prompt" --max-new-tokens 2
expect_out '"ids":[504,3575,282,4649,314]' "${generate[@]}" --prompt "$prompt" --max-new-tokens 1 --json
expect_out '"generated_ids":[7042,30,198,198,504,2988,314,42]' \
  "${generate[@]}" --ids 504,3575,282,4649,314 --max-new-tokens 8 --dtype fp32 --json
expect_out '"generated_ids":[7042,30,198,198]' \
  "${generate[@]}" --prompt "$prompt" --max-new-tokens 4 --json --no-cache
expect_out '[0]  Paris' "${generate[@]}" --prompt "$prompt" --prompt Hello --max-new-tokens 1
expect_out " Paris" "${generate[@]}" --prompt "$prompt" --max-new-tokens 8 --stop "."
expect_out "" "${generate[@]}" --prompt "$prompt" --max-new-tokens 0 --logits "$scratch/logits.safetensors"
[ "$(head -c 400 "$scratch/logits.safetensors" | grep -c '"shape":\[5,49152\]')" = 1 ] ||
  fail "the saved logits are not [5, 49152]"
expect_code 2 "empty" "${generate[@]}" --prompt ""
expect_code 2 "9 tokens, expected at most 8" "${generate[@]}" --ids 1,2,3,4,5,6,7,8,9 --context 8
expect_code 2 "49152" "${generate[@]}" --ids 49152
[ -e /dev/nvidia0 ] || expect_code 2 "CUDA" "${generate[@]}" --prompt x --backend cuda
expect_out "" "${generate[@]}" --prompt "$prompt" --dtype bf16 --max-new-tokens 2
printf '%s\n' "$prompt" >"$scratch/text"
expect_out '"tokens":6' "$programs/perplexity" --model "$model" --file "$scratch/text" --json
expect_code 2 "no-such-text" "$programs/perplexity" --model "$model" --file no-such-text
[ "$(printf '"%s"\n' "$prompt" | "$programs/tokenize" --model "$model" | tr -d ' ')" = \
  "[504,3575,282,4649,314]" ] || fail "tokenize"
[ "$(echo '[504,3575,282,4649,314]' | "$programs/tokenize" --model "$model" --decode)" = \
  "\"$prompt\"" ] || fail "tokenize --decode"
reply=$(printf 'Say hello.\nAnd again.\n' | "${generate[@]}" --chat --max-new-tokens 8 2>"$scratch/err") ||
  fail "chat: $(cat "$scratch/err")"
[ "$(wc -l <<<"$reply")" -ge 2 ] || fail "two turns of a chat give '$reply'"

[ $failed = 0 ] && echo "all programs behave"
exit $((failed > 0))
