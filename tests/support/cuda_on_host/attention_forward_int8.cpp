#include "instances/attention_forward_int8.cu"
