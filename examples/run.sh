#!/usr/bin/env bash
# Generates text, from a machine with nothing installed: installs what is missing, builds the one
# program it needs, runs. The model that comes with rapt needs no download; others are fetched by
# name.
#
#   examples/run.sh --prompt "ROMEO:"
#   examples/run.sh --model smollm2-135m --prompt "The capital of France is" --temperature 0
#   examples/run.sh --model embedded|smollm2-135m|gemma3-270m|PATH ...       (default: embedded)
#
# All other flags are those of build/examples/generate (--help lists them). Only the generated text
# goes to stdout. Exit code 0; 2 for bad usage or input; 1 for anything else.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
. "$root/.ci/setup.sh"

# The model by name or path, taken out of the flags; what is left is generate's.
model=embedded cuda=OFF help=no
flags=()
while [ $# -gt 0 ]; do
  case $1 in
    --model)
      [ $# -ge 2 ] || { note "--model needs a name or a path"; exit 2; }
      model=$2; shift ;;
    --model=*) model=${1#--model=} ;;
    *)
      case $1 in --help | -h) help=yes ;; esac
      if [ "$1" = --backend=cuda ] || { [ "$1" = --backend ] && [ "${2-}" = cuda ]; }; then cuda=ON; fi
      flags+=("$1") ;;
  esac
  shift
done

exec 3>&1 1>&2  # stdout is for the text alone
install_missing build
fetched=smollm2-135m:gemma3-270m
if [ $help = yes ]; then
  :
elif [[ $model = embedded && ! -e $model ]]; then
  model=$root/examples/model
elif [[ ":$fetched:" == *":$model:"* && ! -e $model ]]; then
  install_missing download
  model=$("$root/examples/fetch_model.sh" "$model") || exit 2
elif [ ! -e "$model" ]; then
  note "--model is '$model', expected embedded, smollm2-135m, gemma3-270m or the path of a model"
  exit 2
fi

build=$root/build
if [ ! -f "$build/build.ninja" ]; then
  # Alone, generate needs neither the test packages nor the CUDA kernels.
  (cd "$root" && cmake --preset release -DRAPT_TESTS=OFF -DRAPT_BENCH=OFF -DRAPT_CUDA=$cuda </dev/null) ||
    { note "configuring failed"; exit 1; }
elif [ $cuda = ON ]; then
  cmake -S "$root" -B "$build" -DRAPT_CUDA=ON </dev/null >/dev/null || { note "configuring failed"; exit 1; }
fi
cmake --build "$build" --target example_generate -j "$(compile_jobs)" </dev/null ||
  { note "building failed"; exit 1; }

if [ $help = yes ]; then
  exec "$build/examples/generate" "${flags[@]}" >&3 3>&-
fi
exec "$build/examples/generate" --model "$model" "${flags[@]}" >&3 3>&-
