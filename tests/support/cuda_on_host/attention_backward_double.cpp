#include "instances/attention_backward_double.cu"
