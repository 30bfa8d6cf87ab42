// Documents packed into rows, as a ragged batch.
//
//   document_ids  [batch, seq]     7 7 7 2 2 | 2 2 9 9 9         a document is a run of equal ids
//   cu_seqlens    [documents + 1]  0 3 5 7 10                    where each begins among all tokens
//   positions     [batch, seq]     0 1 2 0 1 | 0 1 0 1 2         inside its document
//
// A run ends with its row. Kernels that take cu_seqlens (attention/attention.hpp) never look across
// documents, so a packed batch costs what its documents cost, and each is computed as if it were
// alone: masks, too, count positions inside the document. Padding is a document of its own.
//
// Source: Krell et al. 2021, arXiv:2107.02027.
#pragma once

#include <cstdint>

#include "rapt/core/scratch.hpp"

namespace rapt {

struct PackedDocuments {
  TensorView<const std::int32_t, 1> cu_seqlens;
  TensorView<const std::int32_t, 2> positions;
};

/// Both on the host, in `scratch`. Throws ShapeError where the tokens do not fit an int32.
inline PackedDocuments packed_documents(Scratch<Cpu>& scratch,
                                        TensorView<const std::int32_t, 2> document_ids) {
  const index_t batch = document_ids.extent(0), seq = document_ids.extent(1);
  if (batch * seq > std::numeric_limits<std::int32_t>::max())
    throw ShapeError(detail::text("packed_documents: document_ids is ",
                                  detail::shape_text(document_ids.shape()),
                                  ", expected at most 2^31 - 1 tokens = [batch, seq]"));
  const auto begins = scratch.tensor<std::int32_t>(Shape{batch * seq + 1});
  const auto positions = scratch.tensor<std::int32_t>(document_ids.shape());
  index_t documents = 0;
  for (index_t b = 0; b < batch; ++b)
    for (index_t i = 0; i < seq; ++i) {
      const bool begin = i == 0 || document_ids(b, i) != document_ids(b, i - 1);
      if (begin) begins(documents++) = static_cast<std::int32_t>(b * seq + i);
      positions(b, i) = begin ? 0 : positions(b, i - 1) + 1;
    }
  begins(documents) = static_cast<std::int32_t>(batch * seq);
  return {begins.slice(0, 0, documents + 1), positions};
}

}  // namespace rapt
