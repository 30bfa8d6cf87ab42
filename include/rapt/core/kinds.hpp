// The kinds that a model is chosen from, by name: activations, rotary layouts, norms. They stand here,
// below every room, because kernels, modules and model files all speak of them.
#pragma once

namespace rapt {

/// act(x) of a gated feed-forward layer, out = act(gate) * up.
enum class Activation {
  silu,       // x / (1 + exp(-x))                                         SwiGLU
  gelu_tanh,  // 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3)))           GeGLU, Gemma
  gelu_erf,   // 0.5 x (1 + erf(x / sqrt(2)))                              BERT
  sigmoid,    // 1 / (1 + exp(-x))                                         output gates
};

/// How rotary pairs lie in the channels of a head; specs: rope/rope.hpp.
enum class RopeLayout {
  rotate_half,          // channel c with c + r/2            (NeoX, Hugging Face)
  interleaved,          // channel 2c with 2c + 1            (GPT-J, GGUF llama, DeepSeek)
  interleaved_to_half,  // reads 2c, 2c + 1; writes c, c + r/2
};

/// The norm of a block.
enum class NormKind {
  rms,    // x / sqrt(mean(x^2) + eps) * w
  layer,  // (x - mean) / sqrt(var + eps) * w + b
};

/// What is normalised between the projection of q and k and their rotation.
enum class QkNorm {
  none,
  head,  // over each head's channels, one weight [head_dim] shared by the heads
  flat,  // over all heads' channels together, weight [heads * head_dim]
};

}  // namespace rapt
