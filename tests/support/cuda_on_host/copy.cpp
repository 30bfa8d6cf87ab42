#include "instances/copy.cu"
