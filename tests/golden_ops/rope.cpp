// op rope: frequencies, cosines and sines, rotation, and its gradient, which is a rotation too.
#include "rapt/core/ops/rope.hpp"

#include "golden_ops/rope_config.hpp"
#include "rapt/rope/table.hpp"

namespace rapt::golden {

void run_rope(Case& c) {
  const Rope rope_config = rope_settings(c, "theta", "scaling", "layout");
  const auto positions = c.input<std::int32_t, 2>("position_ids");
  const auto q = c.input<float, 4>("q"), k = c.input<float, 4>("k");
  const index_t head_dim = q.extent(3), seq_len = c.setting<index_t>("seq_len", 0);

  c.expect("inv_freq", inverse_frequencies(rope_config, head_dim, seq_len));

  const RopeTable<float> table(rope_config, head_dim);
  const Shape angles{positions.extent(0), positions.extent(1), table.pairs()};
  Tensor<float, 3> cos(angles), sin(angles);
  table.write(cos, sin, positions, seq_len);
  c.expect("cos", cos);
  c.expect("sin", sin);

  const auto turned = [&](const Tensor<float, 4>& x, bool inverse) {
    Tensor<float, 4> out(x.shape());
    rope(out, x, cos, sin, table.options(inverse));
    return out;
  };
  c.expect("q_rot", turned(q, false));
  c.expect("k_rot", turned(k, false));
  if (c.has("dq")) c.expect("dq", turned(c.input<float, 4>("dq_rot"), true));
  if (c.has("dk")) c.expect("dk", turned(c.input<float, 4>("dk_rot"), true));
}

}  // namespace rapt::golden
