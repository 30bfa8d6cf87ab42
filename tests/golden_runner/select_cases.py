#!/usr/bin/env python3
"""Copies from a golden folder what the tests need into tests/golden (at most 10 MB).

    tests/golden_runner/select_cases.py SOURCE [DEST]

Kept are the cases of the operations that build/tests/golden can run, less a few large ones that say
nothing a smaller one does not, and the reference values of the real checkpoints without weights,
traces and the one row of all logits of a large vocabulary. index.json keeps the entries of the kept
cases, without the record of how they were checked.
"""

import json
import pathlib
import shutil
import struct
import sys

OPS = {
    "sdpa", "rope", "rmsnorm", "layernorm", "gated_mlp", "linear", "embedding", "softcap",
    "cross_entropy", "sampling", "round_format", "decode_format", "quantize_int8",
    "quantize_int8_given_scale", "quantize_fp8", "attention_module", "causal_lm",
    "adamw", "lr_schedule", "clip_grad_norm", "training_run",
}  # fmt: skip
MODELS = {"llama", "mistral", "qwen3", "gemma2", "gemma3_text"}
# Larger than others of their kind, which stay.
LEFT_OUT = {
    "sdpa/mha_full_square", "sdpa/mha_causal_square", "sdpa/head_dim64", "sdpa/head_dim128",
    "sdpa/mha_full_short_q", "rope/yarn_qwen", "rope/default_half_theta_1e6",
}  # fmt: skip
REAL_MODELS = ("smollm2-135m", "gemma3-270m")
REAL_FILES = ("README.md", "config.json", "tokens.json", "ppl.json", "ppl.txt")
LIMIT = 10_000_000


def wanted(case):
    config = case["config"]
    if case["op"] not in OPS or case["case"] in LEFT_OUT:
        return False
    if case["op"] == "attention_module":
        return config["kind"] == "attention" and not config.get("block_indexer")
    if case["op"] == "causal_lm":
        return config["model_type"] in MODELS
    return True


def copy_without(source, target, dropped):
    """A safetensors file less some tensors."""
    data = source.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    out, parts, at = {}, [], 0
    if "__metadata__" in header:
        out["__metadata__"] = header.pop("__metadata__")
    for name, info in sorted(header.items(), key=lambda item: item[1]["data_offsets"][0]):
        if name in dropped:
            continue
        begin, end = info["data_offsets"]
        parts.append(body[begin:end])
        out[name] = {**info, "data_offsets": [at, at + end - begin]}
        at += end - begin
    text = json.dumps(out, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    target.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    source = pathlib.Path(sys.argv[1])
    root = pathlib.Path(__file__).resolve().parent.parent
    target = pathlib.Path(sys.argv[2]) if len(sys.argv) == 3 else root / "golden"

    def copy(relative):
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / relative, target / relative)

    index = json.loads((source / "index.json").read_text())
    index["cases"] = [case for case in index["cases"] if wanted(case)]
    for case in index["cases"]:
        case.pop("cross_check", None)
        copy(case["file"])
        if case["op"] in ("causal_lm", "training_run"):
            folder = source / case["config"]["checkpoint_folder"]
            for file in sorted(folder.iterdir()):
                copy(file.relative_to(source))
    copy("README.md")
    lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in index.pop("cases"))
    head = json.dumps(index, separators=(",", ":"))
    (target / "index.json").write_text(head[:-1] + ',"cases":[\n' + lines + "\n]}\n")

    for model in REAL_MODELS:
        for name in REAL_FILES:
            copy(pathlib.Path("models") / model / name)
        logits = pathlib.Path("models") / model / "logits.safetensors"
        large = (source / logits).stat().st_size > 500_000
        copy_without(source / logits, target / logits, {"plain.full_logits"} if large else set())

    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    print(f"{target}: {len(lines.splitlines())} cases, {size} bytes")
    if size > LIMIT:
        sys.exit(f"more than {LIMIT} bytes")


if __name__ == "__main__":
    main()
