// rapt: attention, in C++20, header-only.
//
//   attention(out, q, k, v)        the kernel: any mask, any score modifier      attention/
//   attention_backward(dq, ...)    its gradient
//   MultiHeadAttention<float> ...  layers with weights, rotation and caches      modules/
//   nn::Transformer<float>         language models                              nn/
//
// This header is all of it but the two rooms that need more packages: <rapt/io.hpp> (safetensors,
// GGUF, model configs) and <rapt/text.hpp> (tokenizers, sampling, generation).
#pragma once

#include "rapt/attention/attention.hpp"
#include "rapt/attention/backward.hpp"
#include "rapt/attention/reference.hpp"
#include "rapt/attention/reference_backward.hpp"
#include "rapt/cache/footprint.hpp"
#include "rapt/cache/kv_cache.hpp"
#include "rapt/cache/rolling_kv_cache.hpp"
#include "rapt/core/convert.hpp"
#include "rapt/core/ops/cross_entropy.hpp"
#include "rapt/core/parallel.hpp"
#include "rapt/core/parameter.hpp"
#include "rapt/core/print.hpp"
#include "rapt/core/quantize.hpp"
#include "rapt/core/random.hpp"
#include "rapt/core/scratch.hpp"
#include "rapt/core/tape.hpp"
#include "rapt/core/tensor.hpp"
#include "rapt/core/version.hpp"
#include "rapt/mask/mask.hpp"
#include "rapt/mask/score.hpp"
#include "rapt/modules/attention.hpp"
#include "rapt/modules/teaching.hpp"
#include "rapt/nn/transformer.hpp"
#include "rapt/rope/table.hpp"
