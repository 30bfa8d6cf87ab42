// The tests of tests/cuda/operations_test.cpp on a real GPU; skipped where there is none.
#include "cuda/operations_test.cpp"
