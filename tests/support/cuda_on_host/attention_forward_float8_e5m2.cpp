#include "instances/attention_forward_float8_e5m2.cu"
