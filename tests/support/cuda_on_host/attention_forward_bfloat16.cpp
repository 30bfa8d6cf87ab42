#include "instances/attention_forward_bfloat16.cu"
