#!/usr/bin/env bash
# Builds and runs every test, on a machine with nothing installed: installs what is missing, builds,
# fetches the model that the real-model tests read, runs, and counts.
#
#   tests/run.sh               all stages: release, clang (where it is), sanitizers on a part
#   tests/run.sh --quick       the release stage without the slow tests
#   tests/run.sh --sanitize    the address and thread sanitizers on every test, nothing else
#
# RAPT_GOLDEN=DIR adds golden cases, RAPT_MODELS=DIR is where model files are kept,
# RAPT_JOBS=N compilers at once. The last line is "N passed, N failed, N skipped".
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. .ci/setup.sh

mode=all
for flag in "$@"; do
  case $flag in
    --quick) mode=quick ;;
    --sanitize) mode=sanitize ;;
    --help | -h) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    *) note "unknown flag '$flag', expected --quick or --sanitize"; exit 2 ;;
  esac
done

install_missing build tests download
[ $mode != all ] || install_missing cross
jobs=${RAPT_JOBS:-$(compile_jobs)}
passed=0 failed=0 skipped=0
stage() { printf '\n==== %s (%ds)\n' "$*" "$SECONDS"; }
# A stage that is no test counts when it fails.
broken() { printf 'FAILED: %s\n' "$*"; failed=$((failed + 1)); }

# tally BUILD: adds the tests of a ctest run: each GoogleTest case, and each other entry, is one.
tally() {
  local counts
  counts=$(awk -v xml="$1/test-results" '
    function attribute(line, name) {
      if (!match(line, name "=\"[^\"]*\"")) return ""
      return substr(line, RSTART + length(name) + 2, RLENGTH - length(name) - 3)
    }
    /<testcase / {
      name = attribute($0, " name"); status = attribute($0, "status")
      file = xml "/" name ".xml"; total = 0; bad = 0; skip = 0
      while ((getline line < file) > 0) {
        if (line ~ /<testsuites /) { total = attribute(line, " tests"); bad = attribute(line, " failures") + 0 }
        if (line ~ /<skipped/) ++skip
      }
      close(file)
      if (total == 0) { total = 1; skip = status == "notrun" || status == "disabled" }
      if (status == "fail" && bad == 0) bad = 1
      f += bad; s += skip; p += total - bad - skip
    }
    /<skipped message="Unable to find executable/ { ++f; --s }
    END { print p + 0, f + 0, s + 0 }' "$1/ctest.xml" 2>/dev/null)
  [ -n "$counts" ] || { broken "no test results in $1"; return; }
  read -r p f s <<<"$counts"
  printf '%s: %d passed, %d failed, %d skipped\n' "$1" "$p" "$f" "$s"
  passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
}

# run_tests BUILD [ctest flags]
run_tests() {
  local build=$1
  shift
  rm -rf "$build/test-results" "$build/ctest.xml"
  GTEST_OUTPUT="xml:$PWD/$build/test-results/" ctest --test-dir "$build" --output-on-failure \
    --output-junit "$PWD/$build/ctest.xml" -j "$(nproc)" "$@"
  tally "$build"
}

# sanitize PRESET ROOM...: builds the rooms' tests under a sanitizer and runs them (no room: all).
sanitize() {
  local preset=$1 build=build-$1 targets=() labels room
  shift
  stage "$preset sanitizer: ${*:-everything}"
  # A few rooms use little of rapt::instances: they compile that little themselves.
  local whole=$([ $# = 0 ] && echo ON || echo OFF)
  cmake --preset "$preset" -DRAPT_EXAMPLES=$whole -DRAPT_INSTANCES=$whole >/dev/null ||
    { broken "configuring $preset"; return; }
  if [ $# = 0 ]; then  # but for the pages' programs and what reads whole models
    targets=(golden examples/all)
    for room in tests/*/; do
      room=$(basename "$room")
      [ "$room" = gpu ] || ! compgen -G "tests/$room/*_test.cpp" >/dev/null || targets+=("tests_$room")
    done
    set -- '.*'
  else
    targets=("${@/#/tests_}")
  fi
  cmake --build "$build" -j "$jobs" --target "${targets[@]}" || { broken "building $preset"; return; }
  labels=$(IFS='|'; echo "^($*)\$")
  ASAN_OPTIONS=detect_stack_use_after_return=1 UBSAN_OPTIONS=print_stacktrace=1 \
    run_tests "$build" -L "$labels" -LE 'install|headers|isa|readme|model|cuda'
  # The emulator starts fibres by the million: a second stack for each would take all the time.
  [[ ! cuda =~ $labels ]] || UBSAN_OPTIONS=print_stacktrace=1 run_tests "$build" -L '^cuda$'
}

if [ $mode = sanitize ]; then
  sanitize asan
  sanitize tsan
else
  stage "model"
  if model=$(examples/fetch_model.sh smollm2-135m); then
    export RAPT_SMOLLM2=$model
    RAPT_MODELS=$(dirname "$model")
    export RAPT_MODELS
  else
    note "SmolLM2 could not be fetched: the tests that read it skip themselves"
  fi

  stage "release build"
  if cmake --preset release -DRAPT_TESTS=ON -DRAPT_BENCH=ON -DRAPT_EXAMPLES=ON \
      -DRAPT_CUDA=AUTO && cmake --build build -j "$jobs"; then
    stage "release tests"
    if [ $mode = quick ]; then run_tests build -LE 'install|headers|isa|slow|model'; else run_tests build; fi
  else
    broken "release build"
  fi
fi

if [ $mode = all ]; then
  clang=$(command -v clang++ || command -v clang++-14 || true)
  if [ -n "$clang" ]; then
    stage "$clang: every program's syntax and templates"
    tests/headers/run.sh "$clang" --programs || broken "$clang"
  else
    echo "no clang++ here: its stage is skipped"
  fi
  # Where memory is handled by hand: files, text, containers, caches, kernels' edges.
  sanitize asan core io text cache
fi

stage "done"
printf '%d passed, %d failed, %d skipped\n' $passed $failed $skipped
[ $failed = 0 ]
