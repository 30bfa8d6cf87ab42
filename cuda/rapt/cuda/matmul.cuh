// Matrix product on the GPU: out[m,n] = a[m,k] b[k,n] (+ bias[n]) (+ out).
//
// The vendor's library computes it (library_matmul, cuda/instances/runtime.cu). What the library
// does not take (k = 0, odd strides), and everything where there is no library, goes to the
// readable kernel below, which the library is tested against. Where out has 16 bits, the library
// (13.0 on an H200) rounds the product before it adds what was in out, and a bias too where rows do
// not begin at 16 bytes; the kernel below rounds once.
//
//   for each tile [kTile, kTile] of out, one block; thread (row, column) owns one element
//     for l0 in 0, kTile, ...:
//       tile_a = a[rows, l0..], tile_b = b[l0.., columns]      one element a thread, 0 outside
//       barrier;  sum += dot(tile_a[row, :], tile_b[:, column]);  barrier
//
//   Shared memory: two tiles. Each element of a and b is read from global memory once a tile, and
//   kTile times from shared memory, which bounds the speed.
#pragma once

#include "rapt/cuda/reduce.cuh"

namespace rapt::cuda {

inline constexpr int kTile = 16;

template <class Out, class T>
__global__ void matmul_block_per_tile(TensorView<Out, 2, Cuda> out, TensorView<const T, 2, Cuda> a,
                                      TensorView<const T, 2, Cuda> b,
                                      TensorView<const T, 1, Cuda> bias, bool accumulate) {
  using A = accumulate_t<T>;
  constexpr int kTileBytes = kTile * kTile * static_cast<int>(sizeof(A));
  const Shared<A> tile_a = shared<A>();            // [kTile rows, kTile]
  const Shared<A> tile_b = shared<A>(kTileBytes);  // [kTile, kTile columns]
  const index_t m = out.extent(0), n = out.extent(1), k = a.extent(1);
  const index_t tiles_across = (n + kTile - 1) / kTile;
  const index_t tiles = (m + kTile - 1) / kTile * tiles_across;
  const int row = thread_index() / kTile, column = thread_index() % kTile;

  for (index_t tile = block_index(); tile < tiles; tile += grid_size()) {
    const index_t i = tile / tiles_across * kTile + row, j = tile % tiles_across * kTile + column;
    A sum = 0;
    for (index_t l0 = 0; l0 < k; l0 += kTile) {
      tile_a[row * kTile + column] =
          i < m && l0 + column < k ? static_cast<A>(a(i, l0 + column)) : A{0};
      tile_b[row * kTile + column] = l0 + row < k && j < n ? static_cast<A>(b(l0 + row, j)) : A{0};
      block_barrier();
      for (int l = 0; l < kTile; ++l) sum += tile_a[row * kTile + l] * tile_b[l * kTile + column];
      block_barrier();  // the next step overwrites the tiles
    }
    if (i < m && j < n) {
      if (bias) sum += static_cast<A>(bias(j));
      if (accumulate) sum += static_cast<A>(out(i, j));
      out(i, j) = static_cast<Out>(sum);
    }
  }
}

template <class Out, class T>
void simple_matmul(Cuda backend, TensorView<Out, 2, Cuda> out, TensorView<const T, 2, Cuda> a,
                   TensorView<const T, 2, Cuda> b, const MatmulOptions<T, Cuda>& options) {
  const auto tiles = [](index_t extent) { return (extent + kTile - 1) / kTile; };
  constexpr int kSharedBytes = 2 * kTile * kTile * static_cast<int>(sizeof(accumulate_t<T>));
  launch("matmul_block_per_tile", matmul_block_per_tile<Out, T>,
         {blocks_for(tiles(out.extent(0)) * tiles(out.extent(1))), kTile * kTile, kSharedBytes},
         backend, out, a, b, options.bias, options.accumulate);
}

}  // namespace rapt::cuda

namespace rapt {

template <class Out, class T>
void BackendTraits<Cuda>::matmul(Cuda backend, TensorView<Out, 2, Cuda> out,
                                 TensorView<const T, 2, Cuda> a, TensorView<const T, 2, Cuda> b,
                                 const MatmulOptions<T, Cuda>& options) {
  if (out.empty()) return;
  const cuda::MatrixProduct product{.dtype = dtype_of<T>,
                                    .out_dtype = dtype_of<Out>,
                                    .m = out.extent(0),
                                    .n = out.extent(1),
                                    .k = a.extent(1),
                                    .a = a.data(),
                                    .a_row = a.stride(0),
                                    .a_column = a.stride(1),
                                    .b = b.data(),
                                    .b_row = b.stride(0),
                                    .b_column = b.stride(1),
                                    .out = out.data(),
                                    .out_row = out.stride(0),
                                    .bias = options.bias.data(),
                                    .bias_stride = options.bias.stride(0),
                                    .accumulate = options.accumulate};
  if (!cuda::library_matmul(backend, product)) cuda::simple_matmul(backend, out, a, b, options);
}

}  // namespace rapt
