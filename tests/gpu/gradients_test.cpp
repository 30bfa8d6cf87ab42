// The tests of tests/cuda/gradients_test.cpp on a real GPU; skipped where there is none.
#include "cuda/gradients_test.cpp"
