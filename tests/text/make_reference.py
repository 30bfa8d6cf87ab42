#!/usr/bin/env python3
"""Makes tests/text/reference: small tokenizers of every supported make, and what Hugging Face's
`tokenizers` says about a megabyte of mixed Unicode.

    python3 -m venv venv && venv/bin/pip install tokenizers==0.23.3 gguf==0.19.0
    venv/bin/python tests/text/make_reference.py [folder with the GGUF files]

reference/<name>.json        a tokenizer.json, trained on that text
reference/hashes.json        for each tokenizer one hash a line of the text: FNV-1a over the ids as
                             32-bit little-endian words, folded to 32 bits, in hex. "ids": all of it
                             with special tokens parsed; "full": with the tokens around the text.
                             The real models, by name, are built from their GGUF file's own
                             vocabulary: smollm2-135m, gemma3-270m (only with a folder).

The text is made of fixed words and of runs of characters from fixed blocks by SplitMix64, the same
here and in reference_text.hpp. The blocks hold no character that entered Unicode after version 14,
the version of the PCRE2 that Debian 12 has.
"""
import json
import os
import sys

from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        processors, trainers)

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "reference")
LINES, BYTES = 1024, 1024

WORDS = [" ", " ", "  ", "    ", "\n", "\n\n", "\r\n", "\t", " \n", "\u00a0", " the", " of", "The",
         " and", "ing", " house", "'s", "'ll", "'RE", "don't", " I'm", "1", "42", "1234567", " 3.14",
         "://", "...", " == ", "--", "(x)", "{}", "\"", "\u2019s", "\u00e9", "e\u0301", "\ufb01",
         "\u0130", "\u00df", "\u0394\u03a3", "\u1e9b\u0323", "\u017f", "\u180e", "\u200b", "\u2581",
         "\u00bd", "\u2460", "\u4e2d\u6587", "\u65e5\u672c\u8a9e", "\ud55c\uad6d\uc5b4",
         "\U0001f44d\U0001f3fd", "\U0001f468\u200d\U0001f469", "\u0001", "\u007f", "\u0085",
         "<s>", "</s>", "<|end|>", "[MASK]", "<unk>", "aaaaaaaaaaaaaaaaaaaaaaaa"]
BLOCKS = [(0x20, 0x7e), (0x61, 0x7a), (0x61, 0x7a), (0x41, 0x5a), (0x30, 0x39), (0xa1, 0x17f),
          (0x391, 0x3c9), (0x410, 0x44f), (0x5d0, 0x5ea), (0x621, 0x64a), (0x905, 0x939),
          (0xe01, 0xe3a), (0x2000, 0x2063), (0x3041, 0x3096), (0x30a1, 0x30fa), (0x4e00, 0x9fa5),
          (0xac00, 0xd7a3), (0x1f300, 0x1f64f), (0x300, 0x36f), (0x1800, 0x180e), (0xff01, 0xffbe),
          (0x2160, 0x2188), (0x9, 0xd)]
MASK = (1 << 64) - 1


def line(number):
    state = number

    def next_below(n):
        nonlocal state
        state = (state + 0x9E3779B97F4A7C15) & MASK
        z = state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) % n

    out, size = [], 0
    while size < BYTES:
        if next_below(3):
            part = WORDS[next_below(len(WORDS))]
        else:
            low, high = BLOCKS[next_below(len(BLOCKS))]
            part = "".join(chr(low + next_below(high - low + 1)) for _ in range(1 + next_below(8)))
        out.append(part)
        size += len(part.encode())
    return "".join(out)


def fnv(ids):
    h = 0xCBF29CE484222325
    for i in ids:
        for b in int(i).to_bytes(4, "little"):
            h = ((h ^ b) * 0x100000001B3) & MASK
    return "%08x" % ((h ^ (h >> 32)) & 0xFFFFFFFF)


def byte_level(pre, normalizer=None, special=("<s>", "</s>", "<|end|>"), size=900, **bpe):
    t = Tokenizer(models.BPE(**bpe))
    if normalizer:
        t.normalizer = normalizer
    t.pre_tokenizer = pre
    t.decoder = decoders.ByteLevel()
    t.train_from_iterator(TEXT, trainers.BpeTrainer(
        vocab_size=size, special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    return t


def split(regex, behavior="isolated", invert=False):
    return pre_tokenizers.Split(Regex(regex), behavior, invert)


def chain(*steps):
    return pre_tokenizers.Sequence(list(steps))


def raw_bytes():
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
TEKKEN = (r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?"
          r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = ["\\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
            "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
            "| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+"]


def characters(size, **bpe):
    t = Tokenizer(models.BPE(**bpe))
    return t, trainers.BpeTrainer(vocab_size=size, limit_alphabet=150, show_progress=False,
                                  special_tokens=["<unk>", "<s>", "</s>"] +
                                  ["<0x%02X>" % b for b in range(256)])


def make_all():
    made = {}
    made["gpt2"] = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))
    made["gpt2_prefix_space"] = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), size=600)
    made["smollm"] = byte_level(chain(pre_tokenizers.Digits(individual_digits=True),
                                      pre_tokenizers.ByteLevel(add_prefix_space=False)))
    t = byte_level(chain(split(LLAMA3), raw_bytes()), ignore_merges=True)
    t.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<s> $A </s>", pair="<s> $A </s> $B",
                                      special_tokens=[("<s>", 0), ("</s>", 1)])])
    made["llama3"] = t
    made["qwen2"] = byte_level(chain(split(LLAMA3.replace("{1,3}", "")), raw_bytes()),
                               normalizers.NFC())
    made["deepseek"] = byte_level(chain(*[split(r) for r in DEEPSEEK], raw_bytes()))
    made["tekken"] = byte_level(chain(split(TEKKEN), raw_bytes()))
    # Added tokens with every flag, after normalization.
    t = byte_level(chain(split(r"\s+", "merged_with_next"), raw_bytes()),
                   normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase(),
                                         normalizers.Strip()]), size=600)
    t.add_tokens([AddedToken("house", normalized=True, single_word=True),
                  AddedToken("[MASK]", normalized=False, lstrip=True),
                  AddedToken("ΔΣ", normalized=True, rstrip=True), AddedToken("...", normalized=False)])
    made["added"] = t

    t, trainer = characters(700, byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(),
                                   decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    t.train_from_iterator(TEXT[:256], trainer)
    t.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B",
                                                     special_tokens=[("<s>", 1)])
    made["llama2"] = t
    for scheme in ("first", "never"):
        t, trainer = characters(600, unk_token="<unk>", fuse_unk=scheme == "first")
        t.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
        t.decoder = decoders.Metaspace(prepend_scheme=scheme)
        t.train_from_iterator(TEXT[:256], trainer)
        made["metaspace_" + scheme] = t

    t = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    t.normalizer = normalizers.BertNormalizer()
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    t.decoder = decoders.WordPiece()
    t.train_from_iterator(TEXT, trainers.WordPieceTrainer(
        vocab_size=1200, limit_alphabet=400, show_progress=False,
        special_tokens=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]))
    t.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    made["bert"] = t

    # The pieces themselves: every behaviour of every cutter.
    cuts = {
        "whitespace": pre_tokenizers.Whitespace(),
        "whitespace_split": pre_tokenizers.WhitespaceSplit(),
        "punctuation": chain(pre_tokenizers.Punctuation("contiguous"),
                             pre_tokenizers.CharDelimiterSplit("e")),
        "previous": chain(split(r"\p{Lu}|\s", "merged_with_previous"), pre_tokenizers.Digits()),
        "invert": chain(split(r"\w+", "removed", True), split(r"[\p{Greek}a-m]", "contiguous")),
    }
    for name, pre in cuts.items():
        t, trainer = characters(400, unk_token="<unk>")
        t.pre_tokenizer = pre
        t.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents(),
                                             normalizers.Replace(Regex(r"[0-9]+"), "0")])
        t.train_from_iterator(TEXT[:64], trainer)
        made["cut_" + name] = t
    return made


def gguf_fields(path):
    import gguf
    fields = gguf.GGUFReader(path).fields

    def get(key):
        f = fields[key]
        if f.types[-1] == gguf.GGUFValueType.STRING:
            return [bytes(f.parts[i]).decode() for i in f.data]
        return [f.parts[i][0].item() for i in f.data]
    return get


def smollm2(path):
    get = gguf_fields(path)
    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    t = Tokenizer(models.BPE({s: i for i, s in enumerate(tokens)},
                             [tuple(m.split(" ")) for m in get("tokenizer.ggml.merges")]))
    t.pre_tokenizer = chain(pre_tokenizers.Digits(individual_digits=True),
                            pre_tokenizers.ByteLevel(add_prefix_space=False))
    t.add_special_tokens([AddedToken(s, normalized=False) for s, k in zip(tokens, types) if k == 3])
    return t


def gemma3(path):
    get = gguf_fields(path)
    tokens, types = get("tokenizer.ggml.tokens"), get("tokenizer.ggml.token_type")
    scores = get("tokenizer.ggml.scores")
    ids = {s: i for i, s in enumerate(tokens)}
    merges = []
    for s, i in ids.items():
        if types[i] == 1:
            merges += [(-scores[i], i, ids[s[:k]], ids[s[k:]]) for k in range(1, len(s))
                       if types[ids.get(s[:k], 0)] == 1 and types[ids.get(s[k:], 0)] == 1]
    merges.sort()
    t = Tokenizer(models.BPE(ids, [(tokens[a], tokens[b]) for _, _, a, b in merges],
                             unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    t.normalizer = normalizers.Replace(" ", "▁")
    t.add_tokens([AddedToken(s, normalized=False) for s, k in zip(tokens, types) if k == 4])
    t.add_special_tokens([AddedToken(s, normalized=False) for s, k in zip(tokens, types) if k == 3])
    t.post_processor = processors.TemplateProcessing(single="<bos> $A", pair="<bos> $A $B",
                                                     special_tokens=[("<bos>", ids["<bos>"])])
    return t


def main():
    global TEXT
    TEXT = [line(i) for i in range(LINES)]
    path = os.path.join(HERE, "hashes.json")
    hashes = json.load(open(path)) if os.path.exists(path) else {}
    made = make_all()
    for name, t in made.items():
        with open(os.path.join(HERE, name + ".json"), "w") as f:
            f.write(json.dumps(json.loads(t.to_str()), ensure_ascii=False, separators=(",", ":")))
    if len(sys.argv) > 1:
        made["smollm2-135m"] = smollm2(os.path.join(sys.argv[1], "SmolLM2-135M-Instruct.Q4_1.gguf"))
        made["gemma3-270m"] = gemma3(os.path.join(sys.argv[1], "gemma-3-270m-q4_k_m.gguf"))
    for name, t in made.items():
        hashes[name] = {
            "ids": "".join(fnv(t.encode(s, add_special_tokens=False).ids) for s in TEXT),
            "full": "".join(fnv(t.encode(s).ids) for s in TEXT[:64]),
        }
    hashes["text"] = fnv("".join(TEXT).encode())
    with open(path, "w") as f:
        json.dump(hashes, f, indent=0)


if __name__ == "__main__":
    main()
