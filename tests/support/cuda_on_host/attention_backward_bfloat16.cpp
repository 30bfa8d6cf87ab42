#include "instances/attention_backward_bfloat16.cu"
