#include "instances/attention_forward_float8_e4m3.cu"
