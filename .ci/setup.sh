# Shared by tests/run.sh and examples/run.sh, which source it: what a fresh machine lacks, and how
# many compilers it can run at once. Everything it prints goes to stderr.

note() { printf 'rapt: %s\n' "$*" >&2; }

# have PATH...: one of the files is there, below /usr or /usr/local.
have_file() {
  local name prefix
  for name in "$@"; do
    for prefix in /usr/local/include /usr/include /usr/lib /usr/local/lib "/usr/lib/$(uname -m)-linux-gnu"; do
      [ -e "$prefix/$name" ] && return 0
    done
  done
  return 1
}

# missing_packages GROUP...: prints the Debian packages of the groups that are not there, by what
# they bring, so that a tool installed in another way counts too.
missing_packages() {
  local group
  for group in "$@"; do
    case $group in
      build)
        command -v c++ g++ >/dev/null || echo g++
        command -v cmake >/dev/null || echo cmake
        command -v ninja >/dev/null || echo ninja-build
        have_file eigen3/Eigen/Core Eigen/Core || echo libeigen3-dev
        have_file nlohmann/json.hpp || echo nlohmann-json3-dev
        have_file pcre2.h || echo libpcre2-dev
        have_file utf8proc.h || echo libutf8proc-dev
        have_file CLI/CLI.hpp || echo libcli11-dev ;;
      tests)
        have_file gtest/gtest.h || echo libgtest-dev
        have_file gmock/gmock.h || echo libgmock-dev
        have_file benchmark/benchmark.h || echo libbenchmark-dev
        have_file rapidcheck.h || echo librapidcheck-dev ;;
      cross)  # the other processor's compiler and its emulator, for tests/isa
        [ "$(uname -m)" != x86_64 ] || command -v aarch64-linux-gnu-g++ >/dev/null || echo g++-aarch64-linux-gnu
        [ "$(uname -m)" != x86_64 ] || command -v qemu-aarch64-static qemu-aarch64 >/dev/null ||
          echo qemu-user-static ;;
      download)
        python3 -m pip --version >/dev/null 2>&1 || echo python3-pip ;;
    esac
  done
}

# install_missing GROUP...: installs them where apt is and we may; otherwise says what is missing.
install_missing() {
  local packages run=
  packages=$(missing_packages "$@" | tr '\n' ' ')
  [ -n "$packages" ] || return 0
  if ! command -v apt-get >/dev/null; then
    note "please install (Debian's names): $packages"
    return 0
  fi
  if [ "$(id -u)" != 0 ]; then
    if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
      run=sudo
    else
      note "not root and no sudo without a password; please run: apt-get install $packages"
      return 0
    fi
  fi
  note "installing $packages"
  # A fresh machine has no package lists, an old one may have lists of packages that are gone.
  { $run apt-get update -qq &&
    $run env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      $packages; } </dev/null >&2 || note "apt-get failed; going on with what is there"
}

# Compilers at once: one a core, and 1.5 GiB of memory for each.
compile_jobs() {
  local cores memory
  cores=$(nproc 2>/dev/null || echo 2)
  memory=$(awk '/MemAvailable/ {print int($2 / 1572864)}' /proc/meminfo 2>/dev/null || true)
  [ -n "$memory" ] && [ "$memory" -ge 1 ] || memory=1
  [ "$memory" -lt "$cores" ] && cores=$memory
  echo "$cores"
}

# Where ccache is installed, what one checkout of these sources has compiled serves every other.
CCACHE_BASEDIR=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
export CCACHE_BASEDIR CCACHE_NOHASHDIR=1
