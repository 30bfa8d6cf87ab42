#include "instances/attention_forward_float.cu"
