#include "instances/attention_forward_double.cu"
