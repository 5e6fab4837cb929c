// Small dense algebra over either layout: products in register tiles, a Cholesky factor, a triangular solve.
#pragma once

#include <type_traits>
#include <utility>

#include "ahead.h"

namespace MESASCOPE_ISA {

// element (i, j) is data[i * rows + j * columns]
template <class Element>
struct View {
  Element* data;
  Index rows, columns = 1;
  View transposed() const { return {data, columns, rows}; }
  View from_row(Index row) const { return {data + row * rows, rows, columns}; }
  View from_column(Index column) const { return {data + column * columns, rows, columns}; }
};

template <class Element>
inline View<const Element> constant(View<Element> view) {
  return {view.data, view.rows, view.columns};
}

enum class Into { assign, add };

// which elements of a matrix are not zero
enum class Part { all, lower, upper };

// A B or -A B, one summand of a product, with A `rows x inner` and B `inner x columns`. With columns in the lanes, the
// columns of B must be next to each other. Elements of A outside of `part` are zero and stored so.
template <Part part, bool negative, class Element>
struct Summand {
  View<const Element> a, b;
  Index inner;
};

template <Part part = Part::all, class Element>
inline Summand<part, false, Element> plus(View<const Element> a, View<const Element> b, Index inner) {
  return {a, b, inner};
}

template <Part part = Part::all, class Element>
inline Summand<part, true, Element> minus(View<const Element> a, View<const Element> b, Index inner) {
  return {a, b, inner};
}

// Adds what a summand has in a tile of R rows and N registers to the sums of the tile.
template <class Layout, int R, int N, Part part, bool negative, class Element>
[[gnu::always_inline]] inline void accumulate(typename Layout::Vector (&sum)[R][N],
                                              Summand<part, negative, Element> summand, Index row, Index column) {
  using Vector = typename Layout::Vector;
  const auto [a, b, inner] = summand;
  const Index begin = part == Part::upper ? row : 0;
  const Index end = part == Part::lower && row + R < inner ? row + R : inner;
  // What is used again stays in registers where there is room for it beside the sums, not with tiles of 3 x 4 in 16. A
  // factor that is one number is spread over a register anyway.
  constexpr bool fits = R * N + N + 1 <= vector_registers;
  const Element* a_tile = opaque(a.data + row * a.rows + begin * a.columns);
  const Element* b_tile = opaque(b.data + column * b.columns + begin * b.rows);
  for (Index k = begin; k < end; ++k, a_tile += a.columns, b_tile += b.rows) {
    Vector values[N];
    for (int n = 0; n < N; ++n) {
      values[n] = load<Vector>(b_tile + n * Layout::width * b.columns);
      if constexpr (fits && R > 1) keep_in_register(values[n]);
    }
    for (int r = 0; r < R; ++r) {
      Element factor = a_tile[r * a.rows];
      if constexpr (fits && N > 1 && Layout::width == 1) keep_in_register(factor);
      for (int n = 0; n < N; ++n) negative ? sum[r][n] -= factor * values[n] : sum[r][n] += factor * values[n];
    }
  }
}

// The numbers of a row from `column` on, with zeros outside of a part of the matrix.
template <class Layout, Part part>
inline typename Layout::Vector inside(typename Layout::Vector values, Index row, Index column) {
  using Vector = typename Layout::Vector;
  if constexpr (part == Part::all) {
    return values;
  } else if constexpr (Layout::width == 1) {
    return (part == Part::lower ? column <= row : column >= row) ? values : Vector{};
  } else {
    using Integer = std::conditional_t<sizeof(typename Layout::Number) == 4, std::int32_t, std::int64_t>;
    Pack<Integer, Layout::width> distance;  // from the diagonal
    for (int lane = 0; lane < Layout::width; ++lane) distance[lane] = lane;
    distance += Integer(column - row);
    return (part == Part::lower ? distance <= 0 : distance >= 0) ? values : Vector{};
  }
}

// The same layout in registers of half the width, for tiles of which the other half lies outside of a triangle, or beyond
// the last column. Only for registers that hold 16 columns: with fewer, whole registers of a chunk lie outside.
template <class Layout>
struct Halved : Layout {
  static constexpr int width = Layout::width / 2;
  static constexpr int lines_per_tile = 0;
  using Vector = Pack<typename Layout::Number, width>;
};

template <class Layout, Into into, Part c_part, int R, int N, class Element, class... Summands>
[[gnu::always_inline]] inline void product_tile(Ahead& ahead, View<Element> c, Index row, Index column,
                                                Summands... summands) {
  using Vector = typename Layout::Vector;
  constexpr int width = Layout::width;
  if constexpr (Layout::lines_per_tile > 0) ahead.ask_for(Layout::lines_per_tile);
  if constexpr (N == 1 && width == 16 && c_part != Part::all) {
    constexpr Index half = width / 2;
    constexpr bool upper = c_part == Part::upper;
    if (upper ? row >= column + half : row + R <= column + half) {
      const Index zeros = upper ? column : column + half, others = upper ? column + half : column;
      for (int r = 0; r < R; ++r)
        store(c.data + (row + r) * c.rows + zeros, typename Halved<Layout>::Vector{});
      return product_tile<Halved<Layout>, into, c_part, R, N>(ahead, c, row, others, summands...);
    }
  }
  Vector sum[R][N] = {};
  const bool above = column >= row + R, below = column + N * width <= row;
  const bool outside = (c_part == Part::lower && above) || (c_part == Part::upper && below);
  if (!outside) (accumulate<Layout>(sum, summands, row, column), ...);
  Element* const tile = opaque(c.data + row * c.rows + column);
  for (int r = 0; r < R; ++r) {
    for (int n = 0; n < N; ++n) {
      Element* to = tile + r * c.rows + n * width;
      if constexpr (into == Into::add) sum[r][n] += load<Vector>(to);
      store(to, inside<Layout, c_part>(sum[r][n], row + r, column + n * width));
    }
  }
}

// Rows of a tile n registers wide: fewer registers, more rows. Sixteen rows have more addresses than there are
// registers, and in steps along a diagonal much of a tall tile would lie outside of a triangle.
template <class Layout>
constexpr int rows_of_tile(int n, bool steps) {
  const int fitting = Layout::tile.rows * Layout::tile.columns / n;
  const int most = !steps ? 8 : Layout::tile.rows > 4 ? Layout::tile.rows : 4;
  return fitting < most ? fitting : most;
}

// Up to which row tiles of so many rows are taken. Three of the last four would leave one, which loads as much as two.
constexpr Index tiles_end(int tile, Index rows) {
  if (tile == 3 && rows > 3 && rows % 3 == 1) return rows - 4;
  return rows - tile + 1;
}

template <Part part, bool negative, class Element>
constexpr bool triangular(const Summand<part, negative, Element>*) {
  return part != Part::all;
}

// Columns column .. end of a product, as far as they fill tiles N registers wide; returns the column after them. A
// function of its own, whatever it is called from: the registers of a tile are all there are.
template <class Layout, Into into, Part c_part, int N, class Element, class... Summands>
[[gnu::noinline]] Index product_tiles(Ahead& ahead, View<Element> c, Index rows, Index column, Index end,
                                      Summands... summands) {
  // not where only C is a triangle and tiles are one register wide: few rows would be too few sums to keep going
  constexpr bool steps = (c_part != Part::all && N > 1) || (triangular(static_cast<const Summands*>(nullptr)) || ...);
  constexpr int most = rows_of_tile<Layout>(N, steps);
  for (; column + N * Layout::width <= end; column += N * Layout::width) {
    Index row = 0;
    for (const Index last = tiles_end(most, rows); row < last; row += most)
      product_tile<Layout, into, c_part, most, N>(ahead, c, row, column, summands...);
    if constexpr (most > 4)
      for (; row + 4 <= rows; row += 4) product_tile<Layout, into, c_part, 4, N>(ahead, c, row, column, summands...);
    for (; row + 2 <= rows; row += 2) product_tile<Layout, into, c_part, 2, N>(ahead, c, row, column, summands...);
    for (; row < rows; ++row) product_tile<Layout, into, c_part, 1, N>(ahead, c, row, column, summands...);
  }
  return column;
}

// C = sum of products, or C += them, while memory that will be needed is asked for. With columns in the lanes, C is
// computed up to the next multiple of the register width. What lies outside of `c_part` becomes zero.
template <class Layout, Into into, Part c_part = Part::all, class Element, class... Summands>
inline void product(Ahead& ahead, View<Element> c, Index rows, Index columns, Summands... summands) {
  constexpr Index width = Layout::width;
  // along a diagonal more narrow tiles lie outside of a triangle
  constexpr int widest = c_part == Part::all || width == 1 ? Layout::tile.columns : width < 8 ? 2 : 1;
  const Index end = (columns + width - 1) / width * width;
  Index column = 0;
  if (widest * width <= end)
    column = product_tiles<Layout, into, c_part, widest>(ahead, c, rows, column, end, summands...);
  if constexpr (widest > 2)
    if (column + 2 * width <= end)
      column = product_tiles<Layout, into, c_part, 2>(ahead, c, rows, column, end, summands...);
  if (column < end) product_tiles<Layout, into, c_part, 1>(ahead, c, rows, column, end, summands...);
}

template <class Layout, Into into, Part c_part = Part::all, class Element, class... Summands>
inline void product(View<Element> c, Index rows, Index columns, Summands... summands) {
  Ahead nothing;
  product<Layout, into, c_part>(nothing, c, rows, columns, summands...);
}

template <class T, int lanes, int... lane>
inline T sum_halves(Pack<T, lanes> vector, std::integer_sequence<int, lane...>) {
  const Pack<T, lanes / 2> half = __builtin_shufflevector(vector, vector, lane...) +
                                  __builtin_shufflevector(vector, vector, (lanes / 2 + lane)...);
  if constexpr (lanes == 2) {
    return half[0];
  } else {
    return sum_halves<T, lanes / 2>(half, std::make_integer_sequence<int, lanes / 4>());
  }
}

// The sum of the lanes of a vector, in pairs; with one head in each lane a vector is an element already.
template <class Layout>
inline typename Layout::Element sum_lanes(typename Layout::Vector vector) {
  if constexpr (Layout::width == 1) {
    return vector;
  } else {
    constexpr int width = Layout::width;
    return sum_halves<typename Layout::Number, width>(vector, std::make_integer_sequence<int, width / 2>());
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
[[gnu::always_inline]] inline void gather_quads(Pack<T, lanes> (&m)[4], const T* const (&from)[lanes], Index offset) {
  using Quad = Pack<T, 4>;
  for (int i = 0; i < 4; ++i) {
    const auto quad = [&](int block) { return load<Quad>(from[4 * block + i] + offset); };
    if constexpr (lanes == 4) {
      m[i] = quad(0);
    } else if constexpr (lanes == 8) {
      m[i] = __builtin_shufflevector(quad(0), quad(1), 0, 1, 2, 3, 4, 5, 6, 7);
    } else {
      m[i] = side_by_side(quad(0), quad(1), quad(2), quad(3));
    }
  }
  transpose_blocks(m, std::make_integer_sequence<int, lanes>());
}

// and back
template <class T, int lanes>
[[gnu::always_inline]] inline void scatter_quads(T* const (&to)[lanes], Index offset, const Pack<T, lanes>* from) {
  using Quad = Pack<T, 4>;
  Pack<T, lanes> m[4];
  for (int j = 0; j < 4; ++j) m[j] = from[j];
  transpose_blocks(m, std::make_integer_sequence<int, lanes>());
  for (int i = 0; i < 4; ++i) {
    Quad blocks[lanes / 4];  // copied, not shuffled out of m[i]: compilers store blocks directly then
    std::memcpy(blocks, &m[i], sizeof(blocks));
    for (int block = 0; block < lanes / 4; ++block) store(to[4 * block + i] + offset, blocks[block]);
  }
}

// to[j, i] = from[i, j] for i < lanes, j < columns
template <int lanes, class T>
inline void transpose_rows(T* to, Index to_rows, const T* from, Index from_rows, Index columns) {
  const T* rows[lanes];
  for (int i = 0; i < lanes; ++i) rows[i] = from + i * from_rows;
  Index j = 0;
  for (; j + 4 <= columns; j += 4) {
    Pack<T, lanes> m[4];
    gather_quads<T, lanes>(m, rows, j);
    for (int c = 0; c < 4; ++c) store(to + (j + c) * to_rows, m[c]);
  }
  for (; j < columns; ++j)
    for (int i = 0; i < lanes; ++i) to[j * to_rows + i] = rows[i][j];
}

// to[j, i] = from[i, j] for i < rows, j < columns
template <class T>
inline void transpose(T* to, Index to_rows, const T* from, Index from_rows, Index rows, Index columns) {
  constexpr int lanes = register_bytes / sizeof(T);
  Index i = 0;
  if constexpr (lanes > 4)
    for (; i + lanes <= rows; i += lanes)
      transpose_rows<lanes>(to + i, to_rows, from + i * from_rows, from_rows, columns);
  for (; i + 4 <= rows; i += 4) transpose_rows<4>(to + i, to_rows, from + i * from_rows, from_rows, columns);
  for (; i < rows; ++i)
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

// rows of a symmetric matrix that are computed from the same column on
template <class Layout>
constexpr int symmetric_rows() {
  return Layout::width > Layout::tile.rows ? Layout::width : Layout::tile.rows;
}

// The most rows of a tile n registers wide that divide the block of rows
template <class Layout>
constexpr int symmetric_tile_rows(int n) {
  int rows = symmetric_rows<Layout>();
  while (rows > rows_of_tile<Layout>(n, false)) rows = rows % 2 == 0 ? rows / 2 : 1;
  return rows;
}

// Rows first .. last of a symmetric sum in tiles N registers wide from `column` on.
template <class Layout, int N, class Element, class... Summands>
[[gnu::noinline]] void symmetric_tiles(Ahead& ahead, View<Element> c, Index first, Index last, Index column,
                                       Summands... summands) {
  constexpr int rows = symmetric_tile_rows<Layout>(N);
  Index row = first;
  for (; row + rows <= last; row += rows)
    product_tile<Layout, Into::add, Part::all, rows, N>(ahead, c, row, column, summands...);
  for (; row < last; ++row) product_tile<Layout, Into::add, Part::all, 1, N>(ahead, c, row, column, summands...);
}

// Adds a sum of products that is symmetric to a symmetric matrix C of `size` rows.
template <class Layout, class Element, class... Summands>
inline void symmetric_product(Ahead& ahead, View<Element> c, Index size, Summands... summands) {
  constexpr Index width = Layout::width, block = symmetric_rows<Layout>();
  const Index columns = (size + width - 1) / width * width;
  for (Index row = 0; row < size; row += block) {
    const Index last = row + block < size ? row + block : size;
    Index column = row / width * width;
    for (; column + Layout::tile.columns * width <= columns; column += Layout::tile.columns * width)
      symmetric_tiles<Layout, Layout::tile.columns>(ahead, c, row, last, column, summands...);
    if constexpr (Layout::tile.columns > 2) {
      if (column + 3 * width <= columns) {
        symmetric_tiles<Layout, 3>(ahead, c, row, last, column, summands...), column += 3 * width;
      } else if (column + 2 * width <= columns) {
        symmetric_tiles<Layout, 2>(ahead, c, row, last, column, summands...), column += 2 * width;
      }
    }
    if (column < columns) symmetric_tiles<Layout, 1>(ahead, c, row, last, column, summands...);
  }
  mirror<Layout>(c, size);
}

// to = rows of from, each times its factor
template <class Layout, class Element, class Factor>
inline void scaled_rows(View<Element> to, View<const Element> from, Index rows, Index columns, Factor factor) {
  using Vector = typename Layout::Vector;
  for (Index t = 0; t < rows; ++t) {
    const Element by = factor(t);
    for (Index n = 0; n < columns; n += Layout::width)
      store(to.data + t * to.rows + n, Vector(load<Vector>(from.data + t * from.rows + n) * by));
  }
}

template <class Layout, class Element>
inline void scale(View<Element> matrix, Element factor, Index rows, Index columns) {
  scaled_rows<Layout>(matrix, constant(matrix), rows, columns, [&](Index) { return factor; });
}

// Upper Cholesky factor U of A = U^T U in place, with the inverses of its diagonal on the diagonal. No pivot of an exact
// computation is below `floor`, the smallest eigenvalue that A can have: raising them to it only removes rounding errors.
//
// First A = L D L^T, whose rows D L^T wait for no square root.
template <class Layout, class Element>
inline void cholesky(View<Element> a, Index size, Element floor) {
  using T = typename Layout::Number;
  using Vector = typename Layout::Vector;
  constexpr int width = Layout::width;
  for (Index j = 0; j < size; ++j) {
    Element* pivot_row = a.data + j * a.rows;
    const Element pivot = pivot_row[j] > floor ? pivot_row[j] : floor;
    const Element inverse = T(1) / pivot;
    for (Index i = j + 1; i < size; ++i) {
      Element* row = a.data + i * a.rows;
      const Element factor = pivot_row[i] * inverse;
      for (Index n = i / width * width; n < size; n += width)
        store(row + n, Vector(load<Vector>(row + n) - factor * load<Vector>(pivot_row + n)));
    }
    pivot_row[j] = inverse;
  }
  for (Index j = 0; j < size; ++j) {
    Element* row = a.data + j * a.rows;
    const Element root = square_root<T>(row[j]);
    for (Index n = j / width * width; n < size; n += width) store(row + n, Vector(load<Vector>(row + n) * root));
    row[j] = root;
  }
}

// X = U^-T X in place for a factor of size Layout::chunk; X has as many rows.
template <class Layout, class Element>
inline void solve_transposed(View<const Element> factor, View<Element> x, Index columns) {
  using Vector = typename Layout::Vector;
  constexpr int size = Layout::chunk;
  for (Index n = 0; n < columns; n += Layout::width) {
    Vector solved[size];
#pragma GCC unroll 16
    for (int i = 0; i < size; ++i) {
      Vector value = load<Vector>(x.data + i * x.rows + n);
#pragma GCC unroll 16
      for (int j = 0; j < i; ++j) value -= factor.data[j * factor.rows + i] * solved[j];
      solved[i] = value * factor.data[i * factor.rows + i];
      store(x.data + i * x.rows + n, solved[i]);
    }
  }
}

// X = U^-1 X in place for a factor of size Layout::chunk; X has as many rows.
template <class Layout, class Element>
inline void solve_upper(View<const Element> factor, View<Element> x, Index columns) {
  using Vector = typename Layout::Vector;
  constexpr int size = Layout::chunk;
  for (Index n = 0; n < columns; n += Layout::width) {
    Vector solved[size];
#pragma GCC unroll 16
    for (int i = size - 1; i >= 0; --i) {
      Vector value = load<Vector>(x.data + i * x.rows + n);
      // the last one found comes last: the others need not wait for it
#pragma GCC unroll 16
      for (int j = size - 1; j > i; --j) value -= factor.data[i * factor.rows + j] * solved[j];
      solved[i] = value * factor.data[i * factor.rows + i];
      store(x.data + i * x.rows + n, solved[i]);
    }
  }
}

}  // namespace MESASCOPE_ISA
