#!/usr/bin/env bash
# The CPU's kernels for processors that this machine's own build is not for: each instruction set
# compiles the tests of the kernels, and runs them where this processor has it, or an emulator does.
# What runs is compiled at -O1, which unrolls as -O2 does in two thirds of its time, and what cannot
# run at -Og, which is enough to meet every instruction.
#
#   portable      -march=x86-64       SSE2, no vectors of our own
#   avx2          -march=x86-64-v3
#   avx512        -march=x86-64-v4    without bf16 and without integer dot products
#   avx512_bf16   the same with dot products of bfloat16 pairs, where a processor has them that its
#                 own build leaves alone (core/config.hpp); where it has none, the headers compile
#   neon          aarch64, by a cross compiler, under qemu's user mode
#
#   tests/isa/run.sh [COMPILER] [--native]       RAPT_JOBS compilers at once
#
# --native: a build for this machine's processor runs these tests at -O2; its set is left to it.
# A set that cannot be run is compiled; NEON is left out where there is no cross compiler.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
compiler=${1:-c++}
jobs=${RAPT_JOBS:-$(nproc)}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
has() { grep -qw "$1" /proc/cpuinfo 2>/dev/null; }
# Whether this machine runs the set's programs.
runs() {
  case $1 in
    portable) true ;;
    avx2) has avx2 && has fma ;;
    avx512) has avx512vl && has avx512bw && has avx512dq ;;
    avx512_bf16) has avx512_bf16 ;;
    neon) [ -n "$emulator" ] ;;
  esac
}

# Kernels against their oracles.
tests=(cpu/simd cpu/register_tile cpu/matmul cpu/quantized_matmul attention/forward attention/decode
  attention/decode_order attention/quantized attention/backward attention/bfloat16_product
  attention/backward_bfloat16)
bfloat16_tests=" cpu/register_tile cpu/matmul attention/decode attention/bfloat16_product attention/decode_order "
has avx512_bf16 || bfloat16_tests=" cpu/register_tile attention/bfloat16_product attention/backward_bfloat16 "
# Whether a set runs a test: the one with bfloat16 pairs, those that multiply them. Pairs and matrix
# registers in plain loops stand for what only processors with AVX-512 have.
used() {
  case $1 in
    avx512_bf16) [[ $bfloat16_tests = *" $2 "* ]] ;;
    avx512) [ $2 != attention/backward_bfloat16 ] ;;
    *) [[ $2 != attention/*bfloat16* ]] ;;
  esac
}

eigen=$(for d in /usr/local/include/eigen3 /usr/include/eigen3; do
  [ ! -d $d ] || echo "-isystem $d"
done | head -1)
flags="-std=c++20 -Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror -I include -I tests $eigen"
version=$($compiler -dumpfullversion 2>/dev/null || true)
[ -z "$version" ] || flags+=" --param=ggc-min-heapsize=524288"  # g++: see CMakeLists.txt
# g++ 12 miscompiles constant structs with AVX-512 (tests/core/compiler_test.cpp).
pieces=
case $version in 12.*) pieces="-mmove-max=128 -mstore-max=128" ;; esac
launcher=$(command -v ccache || true)

failed=0
job() { echo "$*" >>"$scratch/jobs"; }
run_jobs() {
  local status=0
  # Each line is a shell command; what it prints is kept together.
  xargs -r -d '\n' -P "$jobs" -I{} bash -c '{} >"$0.$$" 2>&1 || { echo "FAILED: {}" | cut -c1-300; tail -30 "$0.$$"; exit 1; }' \
    "$scratch/log" <"$scratch/jobs" || status=1
  : >"$scratch/jobs"
  [ $status = 0 ] || failed=1
}
: >"$scratch/jobs"

own=
[ "${2-}" != --native ] || own=$(printf '#include "rapt/core/config.hpp"\nRAPT_SIMD\n' |
  $compiler -std=c++20 -march=native -I include -x c++ -E -P - 2>/dev/null | tail -1 || true)
sets=()
if [ "$(uname -m)" = x86_64 ]; then
  for set in portable avx2 avx512; do [ $set = "$own" ] || sets+=($set); done
  if ! has avx512_bf16 || { has GenuineIntel && ! has amx_bf16; }; then sets+=(avx512_bf16); fi
fi
cross=$(command -v aarch64-linux-gnu-g++ || true)
emulator=$(command -v qemu-aarch64-static || command -v qemu-aarch64 || true)
if [ -n "$cross" ] && [ -d /usr/src/googletest/googletest ]; then
  sets+=(neon)
else
  echo "no cross compiler for aarch64 (Debian: g++-aarch64-linux-gnu, libgtest-dev): neon is left out"
fi

for set in "${sets[@]}"; do
  with=$compiler more=
  case $set in
    portable) more="-march=x86-64" ;;
    avx2) more="-march=x86-64-v3" ;;
    avx512) more="-march=x86-64-v4 $pieces" ;;
    avx512_bf16) more="-march=x86-64-v4 -mavx512bf16 $pieces" ;;
    neon)
      with=$cross
      # GoogleTest from its sources, for the other machine.
      for part in googletest/src/gtest-all googlemock/src/gmock-all googletest/src/gtest_main; do
        job "$with -std=c++20 -O1 -I /usr/src/googletest/googletest/include -I /usr/src/googletest/googlemock/include -I /usr/src/googletest/googletest -I /usr/src/googletest/googlemock -c /usr/src/googletest/$part.cc -o $scratch/$(basename $part).o"
      done
      more="-isystem /usr/src/googletest/googletest/include -isystem /usr/src/googletest/googlemock/include" ;;
  esac
  runs $set && more+=" -O1" || more+=" -Og"
  for test in "${tests[@]}"; do
    used $set $test || continue
    job "$launcher $with $flags $more -c tests/${test}_test.cpp -o $scratch/$set-${test/\//-}.o"
  done
done
run_jobs
[ $failed = 0 ] || { echo "not everything compiles"; exit 1; }

ran=0
for set in "${sets[@]}"; do
  with=$compiler libraries="-lgmock -lgtest -lgtest_main" under= filter='*'
  if [ $set = neon ]; then
    with=$cross libraries="$scratch/gtest-all.o $scratch/gmock-all.o $scratch/gtest_main.o"
    under="$emulator -L /usr/aarch64-linux-gnu"
  fi
  count=$(ls "$scratch/$set"-*.o | wc -l)
  if ! runs $set; then
    echo "-- $set: $count tests compiled, no processor here that has it"
    continue
  fi
  echo "-- $set: $count tests compiled, running"
  for test in "${tests[@]}"; do
    used $set $test || continue
    program=$scratch/$set-${test/\//-}
    $with "$program.o" $libraries -pthread -o "$program" || { failed=1; continue; }
    # An emulator is slow: of the typed tests of the larger programs, those of float.
    [ $set != neon ] || case $test in
      cpu/simd | cpu/register_tile | attention/decode) filter='*' ;;
      *) filter='*/0.*' ;;
    esac
    job "$under $program --gtest_brief=1 --gtest_filter='$filter'"
    ran=$((ran + 1))
  done
done
run_jobs
[ $failed = 0 ] && echo "$ran programs passed"
exit $failed
