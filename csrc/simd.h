// Packs of numbers that compilers turn into the widest registers of the target, and how matrices are laid over them.
//
// Everything here and in the kernels lives in a namespace named after the instruction set it is compiled for, so that
// one binary can hold several builds and choose among them when it is loaded.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

namespace MESASCOPE_ISA {

using Index = std::int64_t;

template <class T, int N>
using Pack __attribute__((vector_size(N * sizeof(T)))) = T;

// A tile of a product: its rows, and its columns in registers. The more sums it has the fewer loads there are for each,
// but the factors need registers, too.
struct Tile {
  int rows, columns;
};

// bytes of a vector register and how many registers there are, the tiles of the two layouts below, how many lines of
// memory are asked for with each tile (see ahead.h): about as many as a chunk needs, shared out among its products; and
// up to how many bytes of rows backward passes keep from one pass over the tokens for the other: less than half of the
// cache
#if defined(__AVX512F__)
inline constexpr int register_bytes = 64, vector_registers = 32;
inline constexpr Tile lanes_tile{5, 5}, columns_tile{4, 4};
inline constexpr int lanes_ahead = 32, columns_ahead = 12;
inline constexpr Index lanes_kept = 256 * 1024, columns_kept = 512 * 1024;
#elif defined(__AVX2__)
inline constexpr int register_bytes = 32, vector_registers = 16;
inline constexpr Tile lanes_tile{3, 4}, columns_tile{3, 4};
inline constexpr int lanes_ahead = 8, columns_ahead = 6;
inline constexpr Index lanes_kept = 256 * 1024, columns_kept = 0;
#elif defined(__aarch64__)
inline constexpr int register_bytes = 16, vector_registers = 32;
inline constexpr Tile lanes_tile{4, 4}, columns_tile{4, 4};
inline constexpr int lanes_ahead = 4, columns_ahead = 2;
inline constexpr Index lanes_kept = 256 * 1024, columns_kept = 0;
#else
inline constexpr int register_bytes = 16, vector_registers = 16;
inline constexpr Tile lanes_tile{4, 2}, columns_tile{4, 2};
inline constexpr int lanes_ahead = 4, columns_ahead = 2;
inline constexpr Index lanes_kept = 256 * 1024, columns_kept = 0;
#endif

// One head in each lane of a register: every scalar of the algorithm is a pack, no head waits for another, and no lane
// is wasted whatever the size of the head. For small heads, of which there are many.
template <class T>
struct HeadsInLanes {
  using Number = T;
  static constexpr int heads = register_bytes / sizeof(T);
  static constexpr int width = 1;  // columns of a matrix in one register
  static constexpr int chunk = 10;  // tokens treated at once
  static constexpr Tile tile = lanes_tile;
  static constexpr int lines_per_tile = lanes_ahead;
  static constexpr Index most_kept = lanes_kept;
  using Element = Pack<T, heads>;
  using Vector = Element;
};

// One head at a time, the columns of its matrices in the lanes. For large heads.
template <class T>
struct ColumnsInLanes {
  using Number = T;
  static constexpr int heads = 1;
  static constexpr int width = register_bytes / sizeof(T);
  static constexpr int chunk = 16;
  static constexpr Tile tile = columns_tile;
  static constexpr int lines_per_tile = columns_ahead;
  static constexpr Index most_kept = columns_kept;
  using Element = T;
  using Vector = Pack<T, width>;
};

template <class Vector, class Element>
inline Vector load(const Element* from) {
  Vector value;
  std::memcpy(&value, from, sizeof(Vector));
  return value;
}

template <class Vector, class Element>
inline void store(Element* to, Vector value) {
  std::memcpy(to, &value, sizeof(Vector));
}

// A pointer that the compiler knows nothing about. Otherwise it keeps an address for every row and column of the tiles
// of a product, in more registers than there are: setting up a tile took as long as two steps of its loop. The few and
// large tiles of AVX-512 take 1 % longer with it.
template <class Element>
[[gnu::always_inline]] inline Element* opaque(Element* pointer) {
#if !defined(__AVX512F__)
  asm("" : "+r"(pointer));
#endif
  return pointer;
}

// A vector that was read and stays in a register: GCC 12 would read it again for every multiplication. With AVX-512 that
// is no slower.
template <class Vector>
[[gnu::always_inline]] inline void keep_in_register([[maybe_unused]] Vector& vector) {
#if defined(__x86_64__) && !defined(__AVX512F__)
  asm("" : "+v"(vector));
#elif defined(__aarch64__)
  asm("" : "+w"(vector));
#endif
}

#if defined(__AVX512F__)
// Each quarter is read into its place. GCC 12 joins what a shuffle of vectors names in registers, in twice as many
// instructions.
inline Pack<float, 16> side_by_side(Pack<float, 4> a, Pack<float, 4> b, Pack<float, 4> c, Pack<float, 4> d) {
  __m512 all = _mm512_castps128_ps512(__m128(a));
  all = _mm512_insertf32x4(all, __m128(b), 1);
  all = _mm512_insertf32x4(all, __m128(c), 2);
  return Pack<float, 16>(_mm512_insertf32x4(all, __m128(d), 3));
}
#endif

template <class T, class Element>
inline Element map(Element value, T (*function)(T)) {
  if constexpr (sizeof(Element) == sizeof(T)) {
    return function(value);
  } else {
    for (unsigned lane = 0; lane < sizeof(Element) / sizeof(T); ++lane) value[lane] = function(value[lane]);
    return value;
  }
}

template <class T, class Element>
inline Element square_root(Element value) {
  return map<T>(value, +[](T x) -> T { return std::sqrt(x); });
}

}  // namespace MESASCOPE_ISA
