#!/usr/bin/env bash
# A training run that is killed (SIGKILL) at random moments and resumed each time ends with the same
# weights, bit for bit, as one that never was; and so does one that is asked to stop (SIGTERM).
#
#   tests/programs/kill_resume.sh BUILD [KILLS]      default 8; 77 where train is not built
#
# The runs are small, with a checkpoint every step, so that many kills fall into the writing of one.
set -uo pipefail
train=${1:?the build folder}/examples/train
kills=${2:-8}
[ -x "$train" ] || { echo "$train is not built"; exit 77; }
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
fail() { printf 'FAILED: %s\n' "$*"; exit 1; }
RANDOM=${SEED:-$$}  # the moments of the kills
echo "SEED=${SEED:-$$}"

for i in $(seq 400); do echo "line $i: the quick brown fox jumps over the lazy dog $((i * 7919 % 1000))"; done \
  >"$scratch/text"
steps=60
flags=(--data "$scratch/text" --vocab 300 --d-model 32 --layers 2 --heads 4 --kv-heads 2 --batch 2 --seq 32
  --steps $steps --warmup 5 --validate-every 10 --threads 1)
seldom=("${flags[@]}" --checkpoint-every 1000)
flags+=(--checkpoint-every 1)
"$train" "${flags[@]}" --out "$scratch/whole" 2>"$scratch/err" || fail "the whole run: $(cat "$scratch/err")"

step_of() { sed -n 's/.*"step": \([0-9]*\),.*/\1/p' "$1/trainer.json" 2>/dev/null | head -1; }
# same RUN: its weights, moments, state and losses are those of the whole run.
same() {
  local file
  for file in model.safetensors trainer.safetensors trainer.json config.json; do
    cmp -s "$scratch/whole/latest/$file" "$1/latest/$file" || fail "$1: $file differs"
  done
  cmp -s <(sed 's/,"seconds":[^,}]*//' "$scratch/whole/log.jsonl") \
    <(sed 's/,"seconds":[^,}]*//' "$1/log.jsonl") || fail "$1: the losses in the log differ"
}

# What a save that was cut short has left: another one after a kill is of that kill.
left_over() { stat -c '%n %i %.Y' "$run"/latest.new "$run"/latest.old 2>/dev/null; }
run=$scratch/killed landed=0 inside=0 attempts=0 previous=0
while [ "$landed" -lt "$kills" ]; do
  attempts=$((attempts + 1))
  [ $attempts -le $((20 * kills)) ] || fail "only $landed kills in $attempts attempts"
  before=$(left_over)
  "$train" "${flags[@]}" --out "$run" --resume 2>"$scratch/err" &
  pid=$!
  sleep "0.$(printf '%03d' $((RANDOM % 400)))"
  if kill -9 $pid 2>/dev/null; then
    wait $pid 2>/dev/null
    landed=$((landed + 1))
    now=$(left_over)
    [ -n "$now" ] && [ "$now" != "$before" ] && inside=$((inside + 1))
    # What is there can be loaded, and the run never goes back.
    folder=$run/latest
    [ -e "$folder" ] || folder=$run/latest.old
    if [ -e "$folder" ]; then
      now=$(step_of "$folder")
      [ "${now:-0}" -ge "$previous" ] || fail "kill $landed: step ${now:-none} after step $previous"
      previous=$now
    elif [ "$previous" -gt 0 ]; then
      fail "kill $landed: no checkpoint left"
    fi
  else
    wait $pid || fail "resume $attempts: $(cat "$scratch/err")"
  fi
  if [ "$(step_of "$run/latest")" = $steps ]; then  # done: compare, and begin anew
    "$train" "${flags[@]}" --out "$run" --resume 2>"$scratch/err" || fail "$(cat "$scratch/err")"
    same "$run"
    rm -rf "$run"
    previous=0
  fi
done
"$train" "${flags[@]}" --out "$run" --resume 2>"$scratch/err" || fail "the last resume: $(cat "$scratch/err")"
same "$run"
echo "$landed kills, $inside of them while a checkpoint was being written: every resume went on, same weights"

# SIGTERM: the step is finished and saved, the exit code is 0.
run=$scratch/stopped
for _ in 1 2 3 4 5 6 7 8 9 10; do
  lines=$(cat "$run/log.jsonl" 2>/dev/null | wc -l)
  "$train" "${seldom[@]}" --out "$run" --resume 2>"$scratch/err" &
  pid=$!
  for _ in $(seq 1000); do  # until it has done a step
    [ "$(cat "$run/log.jsonl" 2>/dev/null | wc -l)" -gt "$lines" ] && break
    sleep 0.005
  done
  kill -TERM $pid 2>/dev/null
  wait $pid || fail "SIGTERM: exit code $?: $(cat "$scratch/err")"
  [ -n "$(step_of "$run/latest")" ] || fail "SIGTERM left no checkpoint"
  [ "$(step_of "$run/latest")" = $steps ] && break
done
"$train" "${seldom[@]}" --out "$run" --resume 2>"$scratch/err" || fail "$(cat "$scratch/err")"
for file in model.safetensors trainer.safetensors trainer.json; do
  cmp -s "$scratch/whole/latest/$file" "$run/latest/$file" || fail "after SIGTERM: $file differs"
done
echo "a stopped run goes on to the same weights"
