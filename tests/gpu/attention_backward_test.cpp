// The tests of tests/cuda/attention_backward_test.cpp on a real GPU; skipped where there is none.
#include "cuda/attention_backward_test.cpp"
