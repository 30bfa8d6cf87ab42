// Files: the io room, and what stands between it and the others: models and caches saved and
// loaded. Not part of rapt/rapt.hpp, because reading config.json needs nlohmann_json (target
// rapt::text); safetensors and GGUF by themselves need no package.
#pragma once

#include "rapt/cache/cache_file.hpp"
#include "rapt/io/atomic_file.hpp"
#include "rapt/io/atomic_folder.hpp"
#include "rapt/io/export.hpp"
#include "rapt/io/ggml_blocks.hpp"
#include "rapt/io/gguf.hpp"
#include "rapt/io/gguf_config.hpp"
#include "rapt/io/mapped_file.hpp"
#include "rapt/io/model_config.hpp"
#include "rapt/io/read_config.hpp"
#include "rapt/io/safetensors.hpp"
#include "rapt/io/weights.hpp"
#include "rapt/nn/checkpoint.hpp"
