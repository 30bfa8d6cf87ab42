#include "instances/attention_backward_half.cu"
