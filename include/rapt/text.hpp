// Everything about text: tokenizers, chat formats, sampling, generation, streaming output.
//
// Needs nlohmann_json, PCRE2 and utf8proc (CMake target rapt::text).
#pragma once

#include "rapt/text/chat.hpp"
#include "rapt/text/generate.hpp"
#include "rapt/text/gguf_tokenizer.hpp"
#include "rapt/text/load_tokenizer.hpp"
#include "rapt/text/sampling.hpp"
#include "rapt/text/tokenizer.hpp"
#include "rapt/text/tokenizer_json.hpp"
#include "rapt/text/utf8_stream.hpp"
#include "rapt/text/write_tokenizer_json.hpp"
