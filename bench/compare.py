#!/usr/bin/env python3
"""rapt beside PyTorch on the same shapes: runs both in turn and prints the table of ratios.

    bench/compare.py [--bench build/bench] [--rounds 5] [--threads 1] [--only REGEX] [--json]
    bench/compare.py --scaling 2 [...]      one thread beside two, rapt alone

A row is a case of one of our benchmark programs and a function that does the same with PyTorch.
In each round every row runs once here and once there, so that a busy machine slows both; medians
of the rounds are compared. One thread is measured by the time it ran, several by the wall clock.
The last column of --scaling is what the cores themselves give in the same runs: the bound of the
row (multiply-adds, or bytes read) on all threads at once against that of one.
Exit code 0; 2 for a wrong flag, a missing program or a missing PyTorch (rows of rapt alone need
--no-torch).
"""

import argparse
import json
import pathlib
import re
import statistics
import subprocess
import sys
import time

# torch_models.py, beside this file, has the peers that are whole models.

DTYPES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


# ---- rows: (program, case without threads, what PyTorch does) ----


def settings(case):
    """The key:value parts of a case."""
    parts = dict(part.split(":", 1) for part in case.split("/") if ":" in part)
    return {key: int(value) if value.isdigit() else value for key, value in parts.items()}


def torch_attention(torch, case):
    """scaled_dot_product_attention, forward, and backward where the case says so."""
    c = settings(case)
    dtype = getattr(torch, DTYPES[c["dtype"]])
    training = c.get("pass", "forward") != "forward"

    def tensor(length, heads):
        shape = (c["batch"], heads, length, c["head_dim"])
        return torch.randn(shape, dtype=torch.float32).to(dtype).requires_grad_(training)

    q = tensor(c["q_len"], c["heads"])
    k, v = tensor(c["kv_len"], c["kv_heads"]), tensor(c["kv_len"], c["kv_heads"])
    gqa = c["heads"] != c["kv_heads"]
    mask, causal = None, False
    if c["mask"] == "causal":
        # One new token sees everything; is_causal aligns the first rows, not the last.
        causal = c["q_len"] == c["kv_len"]
    window = c["kv_len"]
    if c["mask"].startswith("window"):
        window = int(c["mask"][len("window"):])
    if not causal and (c["q_len"] > 1 and c["mask"] != "full" or window < c["kv_len"]):
        p = torch.arange(c["q_len"])[:, None] + c["kv_len"] - c["q_len"]
        j = torch.arange(c["kv_len"])[None, :]
        mask = (j <= p) & (p - j < window)
    gradient = torch.randn_like(q)
    attend = torch.nn.functional.scaled_dot_product_attention

    def forward():
        with torch.no_grad():
            attend(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=gqa)

    def both():
        q.grad = k.grad = v.grad = None
        attend(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=gqa).backward(gradient)

    return both if training else forward


def torch_training(torch, case):
    """A training step; bf16 here is its autocast."""
    import torch_models

    return torch_models.training(case)[0]


def torch_smollm2(torch, case):
    """SmolLM2's shape with random weights: a prompt, or one token after a context."""
    import torch_models

    c = settings(case)
    if c["pass"] == "prefill":
        return torch_models.prefill(torch_models.SMOLLM2, c["tokens"], c["weights"])[0]
    return torch_models.decode(torch_models.SMOLLM2, c["context"], c["weights"])[0]


def training_case(dtype):
    return (f"training/dtype:{dtype}/d_model:256/layers:6/heads:8/kv_heads:2/vocab:4096/batch:4"
            "/seq:256")


def attention_case(dtype, kv_heads, dim, length, mask="causal", which="forward", batch=1, heads=8):
    return (
        f"attention/pass:{which}/dtype:{dtype}/batch:{batch}/heads:{heads}/kv_heads:{kv_heads}"
        f"/head_dim:{dim}/q_len:{length}/kv_len:{length}/mask:{mask}"
    )


def decode_case(dtype, heads, kv_heads, dim, length, state="hot", q_len=1):
    return (
        f"decode/dtype:{dtype}/batch:1/heads:{heads}/kv_heads:{kv_heads}/head_dim:{dim}"
        f"/q_len:{q_len}/kv_len:{length}/mask:causal/cache:contiguous/state:{state}"
    )


ROWS = [
    *(("bench_attention", attention_case("fp32", 2, 64, n), torch_attention)
      for n in (128, 512, 2048, 8192)),
    ("bench_attention", attention_case("fp32", 2, 128, 2048), torch_attention),
    ("bench_attention", attention_case("fp32", 8, 64, 2048), torch_attention),
    ("bench_attention", attention_case("bf16", 2, 64, 2048), torch_attention),
    ("bench_attention", attention_case("bf16", 2, 128, 2048), torch_attention),
    ("bench_attention", attention_case("fp16", 2, 64, 2048), torch_attention),
    ("bench_attention", attention_case("fp32", 2, 64, 4096, "window512"), torch_attention),
    ("bench_attention", attention_case("fp32", 2, 64, 32, batch=16), torch_attention),
    *(("bench_attention", attention_case(dtype, 2, 64, n, which="both"), torch_attention)
      for dtype in ("fp32", "bf16") for n in (512, 2048)),
    *(("bench_decode", decode_case(dtype, 8, 2, 64, 2048), torch_attention)
      for dtype in ("fp32", "bf16", "fp16")),
    *(("bench_decode", decode_case(dtype, 8, 2, 64, 2048, q_len=4), torch_attention)
      for dtype in ("fp32", "bf16")),
    *(("bench_decode", decode_case(dtype, *shape, 8192, "cold"), torch_attention)
      for dtype in ("fp32", "bf16") for shape in ((8, 2, 64), (32, 8, 128))),
    *(("bench_training", training_case(dtype), torch_training) for dtype in ("fp32", "bf16")),
    # Skipped where the model's file is not in RAPT_MODELS.
    ("bench_model", "model/name:smollm2-135m/weights:fp32/pass:prefill/tokens:512", torch_smollm2),
    ("bench_model", "model/name:smollm2-135m/weights:fp32/pass:decode/context:128/cached:yes",
     torch_smollm2),
]


# Rows of rapt alone, for --scaling.
OWN_ROWS = [
    ("bench_matmul", "matmul/dtype:fp32/m:512/k:576/n:1536/layout:weight/packed:1", None),
    ("bench_model", "model/name:smollm2-135m/weights:blocks/pass:prefill/tokens:512", None),
    ("bench_model", "model/name:smollm2-135m/weights:blocks/pass:decode/context:512", None),
]


# ---- measuring ----


def ours(program, case, min_time):
    """Seconds a call, the share of the bound and the bound, from one run of a benchmark program;
    None where the program skips the case."""
    out = subprocess.run(
        [program, "--case", case, "--benchmark_format=json", f"--benchmark_min_time={min_time}"],
        check=True, capture_output=True, text=True).stdout
    run = json.loads(out)["benchmarks"][0]
    if run.get("error_occurred"):
        return None, None, None
    unit = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}[run["time_unit"]]
    # Programs that take the time themselves report it as the real time.
    own = "real_time" if re.search("/(manual|real)_time$", run["name"]) else "cpu_time"
    return run[own] * unit, run.get("peak_share"), run.get("peak")


def theirs(call, threads, min_time):
    """Seconds a call, by the clock that our programs use."""
    clock = time.thread_time if threads == 1 else time.perf_counter
    call()
    count, start = 0, clock()
    while count == 0 or clock() - start < min_time:
        call()
        count += 1
    return (clock() - start) / count


class ColdCopies:
    """Calls one of several equal problems after the other, 256 MiB of them, as `state:cold` does."""

    def __init__(self, make, case):
        c = settings(case)
        size = 4 if c["dtype"] == "fp32" else 2
        each = 2 * c["batch"] * c["kv_len"] * c["kv_heads"] * c["head_dim"] * size
        self.calls = [make() for _ in range(max(2, (256 << 20) // each))]
        self.at = 0

    def __call__(self):
        self.calls[self.at]()
        self.at = (self.at + 1) % len(self.calls)


def text_of(seconds):
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def scaling(rows, flags):
    """Runs every row on one thread and on several, in turn, and prints the table."""
    counts = (1, flags.scaling)
    runs = {case: {count: [] for count in counts} for _, case, _ in rows}
    for turn in range(flags.rounds):
        for name, case, _ in rows:
            for count in counts:
                runs[case][count].append(
                    ours(flags.bench / name, f"{case}/threads:{count}", flags.min_time))
            print(f"round {turn + 1} of {flags.rounds}: {case}", file=sys.stderr)

    if not flags.json:
        print(f"Medians of {flags.rounds} rounds.\n")
        print(f"| case | 1 thread | {counts[1]} threads | ratio | best against best | the cores' own |"
              "\n|---|---|---|---|---|---|")
    for _, case, _ in rows:
        one, many = (runs[case][count] for count in counts)
        if None in one[0]:
            print(f"compare.py: {case} was skipped", file=sys.stderr)
            continue

        def median(list_of_runs, field):
            return statistics.median(run[field] for run in list_of_runs)

        a, b = median(one, 0), median(many, 0)
        best = min(run[0] for run in one) / min(run[0] for run in many)
        cores = median(many, 2) / median(one, 2)
        if flags.json:
            print(json.dumps({"case": case, "threads": counts[1], "one_seconds": a,
                              "many_seconds": b, "best_ratio": best, "cores_ratio": cores}))
        else:
            print(f"| {case} | {text_of(a)} | {text_of(b)} | {a / b:.2f} | {best:.2f} | {cores:.2f} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bench", default="build/bench", type=pathlib.Path,
                        help="folder of the benchmark programs")
    parser.add_argument("--rounds", default=5, type=int)
    parser.add_argument("--threads", default=1, type=int)
    parser.add_argument("--scaling", default=0, type=int, metavar="N",
                        help="compare one thread with N, rapt alone")
    parser.add_argument("--min-time", default=0.2, type=float, help="seconds a row and round")
    parser.add_argument("--only", default="", help="rows whose case matches this expression")
    parser.add_argument("--no-torch", action="store_true", help="rapt alone")
    parser.add_argument("--json", action="store_true", help="one object a row")
    flags = parser.parse_args()

    torch = None
    if not flags.no_torch and not flags.scaling:
        try:
            import torch
        except ImportError:
            print(f"compare.py: {sys.executable} has no PyTorch: run it with a Python that has, or "
                  "with --no-torch for rapt alone", file=sys.stderr)
            return 2
        torch.set_num_threads(flags.threads)
        torch.manual_seed(1)

    all_rows = ROWS + OWN_ROWS if flags.scaling else ROWS
    rows = [row for row in all_rows if re.search(flags.only, row[1])]
    missing = sorted({name for name, _, _ in rows if not (flags.bench / name).exists()})
    if missing or not rows or flags.rounds < 1 or flags.threads < 1 or flags.scaling < 0:
        what = f"no {', '.join(missing)} in {flags.bench}" if missing else "no such rows or rounds"
        print(f"compare.py: {what}", file=sys.stderr)
        return 2

    if flags.scaling:
        scaling(rows, flags)
        return 0

    calls = {}
    results = {case: ([], [], []) for _, case, _ in rows}
    for turn in range(flags.rounds):
        for name, case, make in rows:
            full_case = f"{case}/threads:{flags.threads}"
            mine, shares, peer = results[case]
            seconds, share, _ = ours(flags.bench / name, full_case, flags.min_time)
            if seconds is None:
                continue
            mine.append(seconds)
            if share is not None:
                shares.append(share)
            if torch is not None:
                if "state:cold" in case:  # large: made anew each round
                    call = ColdCopies(lambda: make(torch, case), case)
                else:
                    if case not in calls:
                        calls[case] = make(torch, case)
                    call = calls[case]
                peer.append(theirs(call, flags.threads, flags.min_time))
            print(f"round {turn + 1} of {flags.rounds}: {full_case}", file=sys.stderr)

    if not flags.json:
        version = torch.__version__ if torch is not None else "not measured"
        print(f"Medians of {flags.rounds} rounds, threads {flags.threads}, PyTorch {version}.\n")
        print("| case | rapt | share | PyTorch | PyTorch / rapt |\n|---|---|---|---|---|")
    for _, case, _ in rows:
        mine, shares, peer = results[case]
        if not mine:
            print(f"compare.py: {case} was skipped", file=sys.stderr)
            continue
        a = statistics.median(mine)
        share = statistics.median(shares) if shares else None
        b = statistics.median(peer) if peer else None
        if flags.json:
            print(json.dumps({"case": case, "threads": flags.threads, "rapt_seconds": a,
                              "peak_share": share, "torch_seconds": b}))
        else:
            print(f"| {case} | {text_of(a)} | {'-' if share is None else f'{share:.2f}'} | "
                  f"{'-' if b is None else text_of(b)} | {'-' if b is None else f'{b / a:.2f}'} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
