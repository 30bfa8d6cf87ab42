// The tests of tests/cuda/quantized_attention_test.cpp on a real GPU; skipped where there is none.
#include "cuda/quantized_attention_test.cpp"
