#include "instances/attention_backward_float.cu"
