#include "instances/attention_forward_half.cu"
