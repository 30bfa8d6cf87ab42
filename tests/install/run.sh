#!/usr/bin/env bash
# rapt as its users meet it: installed into a scratch prefix and found by find_package, fetched by
# FetchContent from a folder, added by add_subdirectory, and through pkg-config. Each way builds and
# runs the consumer beside this script, two translation units that both include everything. Then:
# no compiler flag leaks, files built for different processors keep apart, and the time to compile
# a ten-line program stays in its budget.
#
#   tests/install/run.sh [COMPILER]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(cd "$here/../.." && pwd)
compiler=${1:-c++}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
generator=$(command -v ninja >/dev/null && echo Ninja || echo "Unix Makefiles")
failed=0

quiet() {
  local log=$scratch/log.$BASHPID
  "$@" >"$log" 2>&1 || { echo "FAILED: $*"; tail -40 "$log"; exit 1; }
}
# at_once COMMAND...: each beside the others, what it prints in order.
at_once() {
  local -a ids=()
  local command i
  for command in "$@"; do
    $command >"$scratch/printed.${#ids[@]}" 2>&1 &
    ids+=($!)
  done
  for i in "${!ids[@]}"; do
    wait "${ids[i]}" || failed=1
    cat "$scratch/printed.$i"
  done
  [ $failed = 0 ] || exit 1
}
common=(-G "$generator" -DCMAKE_CXX_COMPILER="$compiler" -DCMAKE_BUILD_TYPE=Debug)

echo "-- install into a scratch prefix, headers alone"
quiet cmake -S "$root" -B "$scratch/rapt" "${common[@]}" -DRAPT_TESTS=OFF -DRAPT_BENCH=OFF \
  -DRAPT_EXAMPLES=OFF -DRAPT_CUDA=OFF -DCMAKE_INSTALL_LIBDIR=lib
quiet cmake --install "$scratch/rapt" --prefix "$scratch/first"
mv "$scratch/first" "$scratch/prefix"  # an installed tree can be moved
if [ -n "$(find "$scratch/prefix" -name '*.hpp' -prune -o -type f -print0 |
    xargs -0 grep -lF "$root" 2>/dev/null)" ]; then
  echo "FAILED: an installed file names the source folder"
  failed=1
fi

by_cmake() {  # WAY
  local way=$1
  echo "-- consumer by $way"
  quiet cmake -S "$here/consumer" -B "$scratch/$way" "${common[@]}" -DWAY=$way \
    -DRAPT_ROOT="$root" -DCMAKE_PREFIX_PATH="$scratch/prefix" \
    -DCMAKE_CXX_FLAGS="-Wall -Wextra -Wpedantic -Wshadow -Wconversion -Werror"
  quiet cmake --build "$scratch/$way" -j 1
  quiet "$scratch/$way/consumer"
  [ ! -x "$scratch/$way/reads_files" ] || quiet "$scratch/$way/reads_files"
  if grep -oE '"command":.*' "$scratch/$way/compile_commands.json" | grep -E -- \
      '-march|-fopenmp|-fno-exceptions|-ffast-math|-mavx'; then
    echo "FAILED: rapt::rapt leaks a compiler flag to its user"
    exit 1
  fi
}
by_pkg_config() {
  command -v pkg-config >/dev/null || return 0
  echo "-- consumer by pkg-config"
  local flags
  flags=$(PKG_CONFIG_PATH=$scratch/prefix/lib/pkgconfig pkg-config --cflags --libs rapt)
  quiet $compiler -std=c++20 "$here"/consumer/main.cpp "$here"/consumer/second.cpp $flags \
    -o "$scratch/by_pkg_config"
  quiet "$scratch/by_pkg_config"
}
at_once "by_cmake package" "by_cmake subdirectory"
at_once "by_cmake fetchcontent" by_pkg_config

eigen=$(for d in /usr/local/include/eigen3 /usr/include/eigen3; do
  [ ! -d $d ] || echo "-isystem $d"
done | head -1)

# Two files of one program built for different processors: each runs its own kernels.
if grep -qw avx2 /proc/cpuinfo 2>/dev/null && grep -qw fma /proc/cpuinfo; then
  echo "-- one program, two instruction sets"
  part() {  # SOURCE [FLAG]
    quiet $compiler -std=c++20 -O1 -I "$scratch/prefix/include" $eigen ${2-} \
      -c "$here/consumer/$1.cpp" -o "$scratch/$1.o"
    nm -C "$scratch/$1.o" | awk '$2 ~ /[WVu]/ {$1 = $2 = ""; print}' | sort -u >"$scratch/$1.symbols"
  }
  at_once "part main" "part second -march=x86-64-v3"
  quiet $compiler "$scratch/main.o" "$scratch/second.o" -pthread -o "$scratch/mixed"
  quiet "$scratch/mixed"
  # What both may share: errors, checks of shapes, the thread pool. No kernel, nothing on tensors.
  if comm -12 "$scratch/main.symbols" "$scratch/second.symbols" | grep -E 'rapt::cpu::|Tensor|Cpu'; then
    echo "FAILED: files built for different processors share the functions above"
    failed=1
  fi
fi

# Processor time, the best of three: a busy machine makes the same work longer.
budget() {  # SECONDS SOURCE
  local TIMEFORMAT='%U %S' spent best=
  for _ in 1 2 3; do
    rm -f "$scratch/budget.o"
    spent=$({ time $compiler -std=c++20 -O2 -I "$scratch/prefix/include" $eigen \
      -c "$2" -o "$scratch/budget.o" 2>"$scratch/log"; } 2>&1 | awk '{print $1 + $2}')
    [ -f "$scratch/budget.o" ] || { echo "FAILED: $2"; tail -20 "$scratch/log"; exit 1; }
    best=$(awk -v a="${best:-$spent}" -v b="$spent" 'BEGIN {print a < b ? a : b}')
    awk -v t="$best" -v b="$1" 'BEGIN {exit !(t < b)}' && break
  done
  echo "-- compiling $(basename "$2") takes ${best}s, expected less than $1s"
  # A shared machine may be slow today: only twice the budget is a failure.
  awk -v t="$best" -v b="$1" 'BEGIN {exit !(t < b)}' || echo "over budget"
  awk -v t="$best" -v b="$1" 'BEGIN {exit !(t < 2 * b)}' || { echo "FAILED: twice the budget"; failed=1; }
}
budget 6 "$here/consumer/attend.cpp"
budget 15 "$here/consumer/main.cpp"

[ $failed = 0 ] && echo "all ways work"
exit $failed
