#!/usr/bin/env bash
# Every public header compiles alone, twice in one file, without a warning; and stays out of what it
# must not include. With --programs every test and example, and so every header, is parsed and its
# templates instantiated instead: what another compiler thinks of them, without generating code.
#
#   tests/headers/run.sh [COMPILER] [--programs]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
compiler=${1:-c++}
programs=${2-}

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
eigen=$(for d in /usr/local/include/eigen3 /usr/include/eigen3; do [ -d $d ] && echo "-isystem $d"; done | head -1)
warnings="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
export compiler flags="-std=c++20 -fsyntax-only $warnings -I include $eigen"

check_header() {  # HEADER, a path below include/, and flags
  local header=$1
  shift
  if ! printf '#include <%s>\n#include <%s>\n' "$header" "$header" |
      $compiler $flags "$@" -x c++ -o /dev/null - 2>"$0/$$.log"; then
    echo "FAILED alone: $header $*"
    sed 's/^/    /' "$0/$$.log" | head -40
    return 1
  fi
}
check_program() {  # SOURCE
  local host=
  case $1 in tests/cuda/*) host="-I tests/support/cuda_on_host -I cuda" ;; esac
  if ! $compiler $host $flags -I tests '-DRAPT_EMBEDDED_MODEL=""' -DRAPT_USE_INSTANCES=1 -DRAPT_HAS_RAPIDCHECK=1 \
      -march=native "$1" 2>"$0/$$.log"; then
    echo "FAILED: $1"
    sed 's/^/    /' "$0/$$.log" | head -40
    return 1
  fi
}
export -f check_header check_program

failed=0
if [ "$programs" = --programs ]; then
  files=$(ls tests/*.cpp tests/*/*_test.cpp examples/*.cpp | grep -v '^tests/gpu/' || true)
  echo "$files" | xargs -r -P "$(nproc)" -n 1 bash -c 'check_program "$1"' "$scratch" || failed=1
else
  # cpu/simd/*.hpp each need the instructions they are for; cpu/simd.hpp chooses among them.
  files=$(cd include && find rapt -name '*.hpp' -not -path 'rapt/cpu/simd/*' | sort)
  echo "$files" | xargs -P "$(nproc)" -n 1 bash -c 'check_header "$1"' "$scratch" || failed=1
  # Programs for CUDA include them too, and nvcc parses them its own way.
  nvcc=$(PATH=$PATH:/usr/local/cuda/bin command -v nvcc || true)
  if [ -n "$nvcc" ]; then
    echo '#include <rapt/rapt.hpp>' >"$scratch/all.cu"
    "$nvcc" -std=c++20 -I include $eigen -c -o /dev/null "$scratch/all.cu" 2>"$scratch/nvcc.log" ||
      { echo "FAILED with nvcc: rapt/rapt.hpp"; head -40 "$scratch/nvcc.log"; failed=1; }
  fi
fi
if [ "$(uname -m)" = x86_64 ]; then
  for isa in -march=x86-64 -march=x86-64-v3 -march=x86-64-v4 "-march=x86-64-v4 -mavx512bf16"; do
    for header in cpu/simd.hpp attention/attention.hpp; do
      bash -c 'check_header "$@"' "$scratch" rapt/$header $isa || failed=1
    done
  done
fi

# Eigen belongs to cpu/ alone, JSON and PCRE2 to io/ and text/; the slow standard headers to nobody.
forbid() {  # PATTERN WHERE-ALLOWED WHY
  local hits
  hits=$(grep -rnE "^ *# *include *<($1)" include cuda --include='*.hpp' --include='*.cuh' 2>/dev/null |
    grep -vE "^($2)" || true)
  [ -z "$hits" ] || { printf 'FAILED, %s:\n%s\n' "$3" "$hits"; failed=1; }
}
forbid 'iostream>|ranges>|random>|regex>' ' ' 'slow to include and not allowed in a public header'
forbid 'Eigen/' 'include/rapt/cpu/' 'Eigen is included in cpu/ alone'
forbid 'nlohmann/|pcre2|utf8proc' 'include/rapt/(io|text)/' 'JSON and Unicode libraries belong to io/ and text/'
forbid 'cuda|cublas' 'cuda/' 'CUDA is included in cuda/ alone'

[ $failed = 0 ] && echo "$(echo "$files" | wc -l) files checked with $compiler"
exit $failed
