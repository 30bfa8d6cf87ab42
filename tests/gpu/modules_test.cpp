// The tests of tests/cuda/modules_test.cpp on a real GPU; skipped where there is none.
#include "cuda/modules_test.cpp"
