// Small dense algebra over either layout: products in register tiles, a Cholesky factor, a triangular solve.
#pragma once

#include <utility>

#include "simd.h"

namespace MESASCOPE_ISA {

// element (i, j) is data[i * rows + j * columns]
template <class Element>
struct View {
  Element* data;
  Index rows, columns = 1;
  View transposed() const { return {data, columns, rows}; }
};

enum class Into { assign, add, subtract };

// which elements of a square matrix are not zero, or are wanted
enum class Part { all, lower, upper };

template <class Layout, Into into, int R, int N, class Element>
[[gnu::always_inline]] inline void product_tile(View<Element> c, View<const Element> a, View<const Element> b, Index begin, Index end) {
  using Vector = typename Layout::Vector;
  Vector sum[R][N] = {};
  for (Index k = begin; k < end; ++k) {
    Vector row[N];
    for (int n = 0; n < N; ++n) row[n] = load<Vector>(b.data + k * b.rows + n * Layout::width * b.columns);
    for (int r = 0; r < R; ++r) {
      const Element factor = a.data[r * a.rows + k * a.columns];
      for (int n = 0; n < N; ++n) sum[r][n] += factor * row[n];
    }
  }
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) {
      Element* to = c.data + r * c.rows + n * Layout::width;
      if constexpr (into == Into::assign) store(to, sum[r][n]);
      if constexpr (into == Into::add) store(to, Vector(load<Vector>(to) + sum[r][n]));
      if constexpr (into == Into::subtract) store(to, Vector(load<Vector>(to) - sum[r][n]));
    }
  }
}

template <class Layout, Into into, Part a_part, Part c_part, int R, int N, class Element>
[[gnu::always_inline]] inline void product_rows(View<Element> c, View<const Element> a, View<const Element> b, Index row, Index column,
                         Index inner) {
  const Index first = column * Layout::width, last = (column + N) * Layout::width;
  if (c_part == Part::lower && first >= row + R) return;
  if (c_part == Part::upper && last <= row) return;
  const Index begin = a_part == Part::upper ? row : 0;
  const Index end = a_part == Part::lower && row + R < inner ? row + R : inner;
  product_tile<Layout, into, R, N, Element>({c.data + row * c.rows + first, c.rows}, {a.data + row * a.rows, a.rows, a.columns},
                                   {b.data + first * b.columns, b.rows, b.columns}, begin, end);
}

template <class Layout, Into into, Part a_part, Part c_part, int N, class Element>
inline void product_columns(View<Element> c, View<const Element> a, View<const Element> b, Index rows, Index column,
                            Index inner) {
  Index row = 0;
  for (; row + tile_rows <= rows; row += tile_rows)
    product_rows<Layout, into, a_part, c_part, tile_rows, N>(c, a, b, row, column, inner);
  for (; row + 2 <= rows; row += 2) product_rows<Layout, into, a_part, c_part, 2, N>(c, a, b, row, column, inner);
  for (; row < rows; ++row) product_rows<Layout, into, a_part, c_part, 1, N>(c, a, b, row, column, inner);
}

// C = A B, C += A B or C -= A B, with A `rows x inner` and B `inner x columns`. With columns in the lanes, the columns
// of B must be next to each other, and C is computed up to the next multiple of the register width.
//
// a_part: elements of A outside of it are zero and stored so. c_part: elements of C outside of it are not needed.
template <class Layout, Into into, Part a_part = Part::all, Part c_part = Part::all, class Element>
inline void product(View<Element> c, View<const Element> a, View<const Element> b, Index rows, Index columns,
                    Index inner) {
  const Index vectors = (columns + Layout::width - 1) / Layout::width;
  Index column = 0;
  for (; column + tile_columns <= vectors; column += tile_columns)
    product_columns<Layout, into, a_part, c_part, tile_columns>(c, a, b, rows, column, inner);
  for (; column + 2 <= vectors; column += 2)
    product_columns<Layout, into, a_part, c_part, 2>(c, a, b, rows, column, inner);
  for (; column < vectors; ++column) product_columns<Layout, into, a_part, c_part, 1>(c, a, b, rows, column, inner);
}

// The sum of the lanes of a vector, in pairs; with one head in each lane a vector is an element already.
template <class Layout>
inline typename Layout::Element sum_lanes(typename Layout::Vector vector) {
  if constexpr (Layout::width == 1) {
    return vector;
  } else {
    typename Layout::Number lanes[Layout::width];
    std::memcpy(lanes, &vector, sizeof(vector));
    for (int half = Layout::width / 2; half > 0; half /= 2)
      for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
    return lanes[0];
  }
}

// Where the numbers of a transposed block come from: `round` 0 pairs rows, round 1 pairs of pairs; `second` is the
// vector of the last two rows or columns, `lane` a lane of blocks of four.
constexpr int transposing_lane(int round, int second, int lane, int lanes) {
  const int block = lane / 4 * 4, within = lane % 4;
  if (round == 0) return (within % 2) * lanes + block + 2 * second + within / 2;
  return (within / 2) * lanes + block + 2 * second + within % 2;
}

// rows[i] and columns[j] hold blocks of four numbers, number j of row i being number i of column j: the rows of
// lanes / 4 matrices of 4 x 4 side by side to their columns, or back
template <class Vector, int... lane>
[[gnu::always_inline]] inline void transpose_blocks(Vector (&m)[4], std::integer_sequence<int, lane...>) {
  constexpr int lanes = sizeof...(lane);
  const Vector ab_low = __builtin_shufflevector(m[0], m[1], transposing_lane(0, 0, lane, lanes)...);
  const Vector ab_high = __builtin_shufflevector(m[0], m[1], transposing_lane(0, 1, lane, lanes)...);
  const Vector cd_low = __builtin_shufflevector(m[2], m[3], transposing_lane(0, 0, lane, lanes)...);
  const Vector cd_high = __builtin_shufflevector(m[2], m[3], transposing_lane(0, 1, lane, lanes)...);
  m[0] = __builtin_shufflevector(ab_low, cd_low, transposing_lane(1, 0, lane, lanes)...);
  m[1] = __builtin_shufflevector(ab_low, cd_low, transposing_lane(1, 1, lane, lanes)...);
  m[2] = __builtin_shufflevector(ab_high, cd_high, transposing_lane(1, 0, lane, lanes)...);
  m[3] = __builtin_shufflevector(ab_high, cd_high, transposing_lane(1, 1, lane, lanes)...);
}

// Four numbers of each of `lanes` rows into four vectors with a row in each lane
template <class T, int lanes>
[[gnu::always_inline]] inline void gather_quads(Pack<T, lanes>* to, const T* const (&from)[lanes], std::int64_t offset) {
  using Quad = Pack<T, 4>;
  Pack<T, lanes> m[4];
  for (int i = 0; i < 4; ++i) {
    const auto quad = [&](int block) { return load<Quad>(from[4 * block + i] + offset); };
    if constexpr (lanes == 4) {
      m[i] = quad(0);
    } else {
      const auto low = __builtin_shufflevector(quad(0), quad(1), 0, 1, 2, 3, 4, 5, 6, 7);
      if constexpr (lanes == 8) {
        m[i] = low;
      } else {
        const auto high = __builtin_shufflevector(quad(2), quad(3), 0, 1, 2, 3, 4, 5, 6, 7);
        m[i] = __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
      }
    }
  }
  transpose_blocks(m, std::make_integer_sequence<int, lanes>());
  for (int j = 0; j < 4; ++j) to[j] = m[j];
}

// and back
template <class T, int lanes>
[[gnu::always_inline]] inline void scatter_quads(T* const (&to)[lanes], std::int64_t offset, const Pack<T, lanes>* from) {
  using Quad = Pack<T, 4>;
  Pack<T, lanes> m[4];
  for (int j = 0; j < 4; ++j) m[j] = from[j];
  transpose_blocks(m, std::make_integer_sequence<int, lanes>());
  for (int i = 0; i < 4; ++i) {
    if constexpr (lanes == 4) {
      store(to[i] + offset, m[i]);
    } else {
      store(to[i] + offset, Quad(__builtin_shufflevector(m[i], m[i], 0, 1, 2, 3)));
      store(to[4 + i] + offset, Quad(__builtin_shufflevector(m[i], m[i], 4, 5, 6, 7)));
      if constexpr (lanes == 16) {
        store(to[8 + i] + offset, Quad(__builtin_shufflevector(m[i], m[i], 8, 9, 10, 11)));
        store(to[12 + i] + offset, Quad(__builtin_shufflevector(m[i], m[i], 12, 13, 14, 15)));
      }
    }
  }
}

// to[j][i] = from[i][j] for four rows of four numbers
template <class T>
inline void transpose_4x4(T* const (&to)[4], const T* const (&from)[4]) {
  Pack<T, 4> m[4] = {load<Pack<T, 4>>(from[0]), load<Pack<T, 4>>(from[1]), load<Pack<T, 4>>(from[2]),
                     load<Pack<T, 4>>(from[3])};
  transpose_blocks(m, std::make_integer_sequence<int, 4>());
  for (int j = 0; j < 4; ++j) store(to[j], m[j]);
}

// to[j, i] = from[i, j] for i < rows, j < columns
template <class T>
inline void transpose(T* to, Index to_rows, const T* from, Index from_rows, Index rows, Index columns) {
  const Index whole = rows / 4 * 4;
  for (Index i = 0; i < whole; i += 4) {
    const T* const source[4] = {from + i * from_rows, from + (i + 1) * from_rows, from + (i + 2) * from_rows,
                                from + (i + 3) * from_rows};
    Index j = 0;
    for (; j + 4 <= columns; j += 4) {
      T* block = to + j * to_rows + i;
      transpose_4x4<T>({block, block + to_rows, block + 2 * to_rows, block + 3 * to_rows},
                       {source[0] + j, source[1] + j, source[2] + j, source[3] + j});
    }
    for (; j < columns; ++j)
      for (Index r = 0; r < 4; ++r) to[j * to_rows + i + r] = from[(i + r) * from_rows + j];
  }
  for (Index i = whole; i < rows; ++i)
    for (Index j = 0; j < columns; ++j) to[j * to_rows + i] = from[i * from_rows + j];
}

// A transposed matrix that `product` takes as its second factor: a view where a view will do, else a copy in `scratch`.
template <class Layout, class Element>
inline View<const Element> transposed(View<const Element> matrix, Index rows, Index columns, View<Element> scratch) {
  if constexpr (Layout::width == 1) {
    return matrix.transposed();
  } else {
    transpose(scratch.data, scratch.rows, matrix.data, matrix.rows, rows, columns);
    return {scratch.data, scratch.rows};
  }
}

// Copies what is above the diagonal of a square matrix below it.
template <class Layout, class Element>
inline void mirror(View<Element> matrix, Index size) {
  constexpr Index width = Layout::width;
  if constexpr (width == 1) {
    for (Index i = 1; i < size; ++i)
      for (Index j = 0; j < i; ++j) matrix.data[i * matrix.rows + j] = matrix.data[j * matrix.rows + i];
  } else {
    for (Index block = 0; block + width < size; block += width)
      transpose(matrix.data + (block + width) * matrix.rows + block, matrix.rows,
                matrix.data + block * matrix.rows + block + width, matrix.rows, width, size - block - width);
  }
}

// A^T B, which is symmetric if A is B; or A^T B + B^T A
enum class Symmetric { square, pair };

template <class Layout, Into into, Symmetric kind, int R, int N, class Element>
[[gnu::always_inline]] inline void symmetric_tile(View<Element> c, View<const Element> a, View<const Element> b, Index row,
                                                  Index column, Index inner) {
  using Vector = typename Layout::Vector;
  Vector sum[R][N] = {};
  const auto accumulate = [&](View<const Element> left, View<const Element> right) {
    for (Index k = 0; k < inner; ++k) {
      Vector values[N];
      for (int n = 0; n < N; ++n) values[n] = load<Vector>(right.data + k * right.rows + column + n * Layout::width);
      for (int r = 0; r < R; ++r)
        for (int n = 0; n < N; ++n) sum[r][n] += left.data[k * left.rows + row + r] * values[n];
    }
  };
  accumulate(a, b);
  if constexpr (kind == Symmetric::pair) accumulate(b, a);
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) {
      Element* to = c.data + (row + r) * c.rows + column + n * Layout::width;
      const Vector before = load<Vector>(to);
      store(to, Vector(into == Into::add ? before + sum[r][n] : before - sum[r][n]));
    }
  }
}

// Rows first .. last of a symmetric update in tiles N registers wide from `column` on; fewer registers, more rows.
template <class Layout, Into into, Symmetric kind, int N, class Element>
inline void symmetric_tiles(View<Element> c, View<const Element> a, View<const Element> b, Index first, Index last,
                            Index column, Index inner) {
  constexpr int fitting = tile_rows * tile_columns / (N == 3 ? 4 : N);
  constexpr int rows = fitting < Layout::width || Layout::width == 1 ? fitting : Layout::width;
  Index row = first;
  for (; row + rows <= last; row += rows) symmetric_tile<Layout, into, kind, rows, N>(c, a, b, row, column, inner);
  for (; row < last; ++row) symmetric_tile<Layout, into, kind, 1, N>(c, a, b, row, column, inner);
}

// Adds A^T A (square; A is B) or A^T B + B^T A (pair) to a symmetric matrix C of `size` rows, or subtracts it.
template <class Layout, Into into, Symmetric kind, class Element>
inline void symmetric_product(View<Element> c, View<const Element> a, View<const Element> b, Index size, Index inner) {
  constexpr Index width = Layout::width, block = width > tile_rows ? width : tile_rows;
  const Index columns = (size + width - 1) / width * width;
  for (Index row = 0; row < size; row += block) {
    const Index last = row + block < size ? row + block : size;
    Index column = row / width * width;
    for (; column + tile_columns * width <= columns; column += tile_columns * width)
      symmetric_tiles<Layout, into, kind, tile_columns>(c, a, b, row, last, column, inner);
    if constexpr (tile_columns > 2) {
      if (column + 3 * width <= columns) {
        symmetric_tiles<Layout, into, kind, 3>(c, a, b, row, last, column, inner), column += 3 * width;
      } else if (column + 2 * width <= columns) {
        symmetric_tiles<Layout, into, kind, 2>(c, a, b, row, last, column, inner), column += 2 * width;
      }
    }
    if (column < columns) symmetric_tiles<Layout, into, kind, 1>(c, a, b, row, last, column, inner);
  }
  mirror<Layout>(c, size);
}

// Zero above (lower) or below (upper) the diagonal of a matrix with `rows` rows and `columns` columns.
template <class Layout, Part kept, class Element>
inline void keep(View<Element> matrix, Index rows, Index columns) {
  for (Index i = 0; i < rows; ++i) {
    const Index begin = kept == Part::lower ? i + 1 : 0, end = kept == Part::lower ? columns : i;
    for (Index j = begin; j < end; ++j) matrix.data[i * matrix.rows + j] = Element{};
  }
}

// Upper Cholesky factor U of A = U^T U in place, and the inverses of its diagonal. No pivot of an exact computation
// is below `floor`, the smallest eigenvalue that A can have: raising them to it only removes rounding errors.
template <class Layout, class Element>
inline void cholesky(View<Element> a, Index size, Element floor, Element* inverse_diagonal) {
  using T = typename Layout::Number;
  using Vector = typename Layout::Vector;
  constexpr int width = Layout::width;
  for (Index j = 0; j < size; ++j) {
    Element* pivot_row = a.data + j * a.rows;
    const Element pivot = pivot_row[j] > floor ? pivot_row[j] : floor;
    const Element inverse = T(1) / square_root<T>(pivot);
    inverse_diagonal[j] = inverse;
    for (Index n = j / width * width; n < size; n += width)
      store(pivot_row + n, Vector(load<Vector>(pivot_row + n) * inverse));
    for (Index i = j + 1; i < size; ++i) {
      Element* row = a.data + i * a.rows;
      const Element factor = pivot_row[i];
      for (Index n = i / width * width; n < size; n += width)
        store(row + n, Vector(load<Vector>(row + n) - factor * load<Vector>(pivot_row + n)));
    }
  }
}

// X = U^-T X in place for a factor of size Layout::chunk; X has as many rows.
template <class Layout, class Element>
inline void solve_transposed(View<const Element> factor, const Element* inverse_diagonal, View<Element> x,
                             Index columns) {
  using Vector = typename Layout::Vector;
  constexpr int size = Layout::chunk;
  for (Index n = 0; n < columns; n += Layout::width) {
    Vector solved[size];
#pragma GCC unroll 16
    for (int i = 0; i < size; ++i) {
      Vector value = load<Vector>(x.data + i * x.rows + n);
#pragma GCC unroll 16
      for (int j = 0; j < i; ++j) value -= factor.data[j * factor.rows + i] * solved[j];
      solved[i] = value * inverse_diagonal[i];
      store(x.data + i * x.rows + n, solved[i]);
    }
  }
}

// X = U^-1 X in place for a factor of size Layout::chunk; X has as many rows.
template <class Layout, class Element>
inline void solve_upper(View<const Element> factor, const Element* inverse_diagonal, View<Element> x, Index columns) {
  using Vector = typename Layout::Vector;
  constexpr int size = Layout::chunk;
  for (Index n = 0; n < columns; n += Layout::width) {
    Vector solved[size];
#pragma GCC unroll 16
    for (int i = size - 1; i >= 0; --i) {
      Vector value = load<Vector>(x.data + i * x.rows + n);
#pragma GCC unroll 16
      for (int j = i + 1; j < size; ++j) value -= factor.data[i * factor.rows + j] * solved[j];
      solved[i] = value * inverse_diagonal[i];
      store(x.data + i * x.rows + n, solved[i]);
    }
  }
}

}  // namespace MESASCOPE_ISA
