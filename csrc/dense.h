// What a Transformer computes for each token alone: linear maps of rows, and its MLP, y = W_2 gelu(W_1 x).
//
// A few rows at a time, whose hidden layer stays in the cache. It is not kept for the way back but computed again, a tenth
// of the backward pass.
#pragma once

#include "functions.h"
#include "layout.h"

namespace MESASCOPE_ISA {

using mesascope::block_rows;
using mesascope::group_end;
using mesascope::group_rows;
using mesascope::MapsProblem;
using mesascope::MapsSizes;
using mesascope::MlpProblem;
using mesascope::MlpSizes;
using mesascope::most_maps;

// Calls with the first row of every block of a group, how many rows it has, and how many the block that follows it.
template <class Visit>
inline void each_block(Index rows, Index group, Visit visit) {
  const auto count = [](Index left) { return left < block_rows ? left : block_rows; };
  const Index end = group_end(rows, group);
  for (Index row = group * group_rows(rows); row < end; row += block_rows) {
    const Index n = count(end - row);
    visit(row, n, count(rows - row - n));
  }
}

// The rows of a contiguous matrix from one on
template <class T>
inline View<T> rows_from(T* matrix, Index columns, Index row) {
  return {matrix + row * columns, columns};
}

// Between matrices of whole registers and others
template <class T>
inline void copy_rows(T* to, Index to_rows, const T* from, Index from_rows, Index rows, Index columns) {
  for (Index i = 0; i < rows; ++i) std::memcpy(to + i * to_rows, from + i * from_rows, std::size_t(columns) * sizeof(T));
}

template <Part part, bool negative, class Element>
inline Summand<part, negative, Element> from_column(Summand<part, negative, Element> summand, Index column) {
  return {summand.a, summand.b.from_column(column), summand.inner};
}

// Whether rows of so many columns end with a register or, where there are sixteen columns in one, with half of one
template <class Layout>
constexpr bool fills_registers(Index columns) {
  return columns % (Layout::width == 16 ? 8 : Layout::width) == 0;
}

// A product without the upper half of the last registers where no column needs it: widths of Transformers are not always
// multiples of sixteen.
template <class Layout, Into into, class Element, class... Summands>
inline void trimmed_product(Ahead& ahead, View<Element> c, Index rows, Index columns, Summands... summands) {
  if constexpr (Layout::width == 16) {
    const Index whole = columns / 16 * 16;
    if (whole < columns && columns <= whole + 8) {
      if (whole > 0) product<Layout, into>(ahead, c, rows, whole, summands...);
      return product<Halved<Layout>, into>(ahead, c.from_column(whole), rows, columns - whole,
                                           from_column(summands, whole)...);
    }
  }
  product<Layout, into>(ahead, c, rows, columns, summands...);
}

// Rows of a matrix that `trimmed_product` writes, where they lie if it writes nothing beside them
template <class Layout, class Element>
inline View<Element> rows_to_write(Element* matrix, Index columns, Index row, View<Element> buffer) {
  return fills_registers<Layout>(columns) ? rows_from(matrix, columns, row) : buffer;
}

// Copies rows that were written to the buffer to where they belong.
template <class Layout, class Element>
inline void finish_rows(Element* matrix, Index columns, Index row, Index n, View<Element> written) {
  if (!fills_registers<Layout>(columns))
    copy_rows(matrix + row * columns, columns, written.data, written.rows, n, columns);
}

template <class Layout>
struct MapsForward {
  using Element = typename Layout::Element;

  View<Element> w_t[most_maps], y[most_maps];
  Ahead ahead;
  Index bytes;

  MapsForward(const MapsSizes& size, void* memory) {
    Workspace<Layout> space(memory);
    for (int m = 0; m < most_maps; ++m) {
      w_t[m] = space.matrix(size.width, size.outputs[m]);
      y[m] = space.matrix(block_rows, size.outputs[m]);
    }
    bytes = space.bytes();
  }

  void run(const MapsProblem& problem, Index group, Index) {
    const Index width = problem.size.width;
    const Index* const outputs = problem.size.outputs;
    for (int m = 0; m < most_maps; ++m)
      transpose(w_t[m].data, w_t[m].rows, problem.w[m], problem.w_rows[m], outputs[m], width);
    each_block(problem.size.rows, group, [&](Index row, Index n, Index next) {
      const auto x = rows_from(problem.x, width, row);
      ahead.finish();
      for (int m = 0; m < most_maps; ++m) ask_for_matrix(ahead, rows_from(problem.y[m], outputs[m], row), n);
      ask_for_matrix(ahead, rows_from(problem.x, width, row + n), next);
      for (int m = 0; m < most_maps; ++m) {
        const auto to = rows_to_write<Layout>(problem.y[m], outputs[m], row, y[m]);
        trimmed_product<Layout, Into::assign>(ahead, to, n, outputs[m], plus(x, constant(w_t[m]), width));
        finish_rows<Layout>(problem.y[m], outputs[m], row, n, to);
      }
    });
  }
};

// dx = sum of W_m^T g_m, dW_m = sum of g_m x^T over the rows
template <class Layout>
struct MapsBackward {
  using Element = typename Layout::Element;

  View<Element> w[most_maps], g[most_maps], dw_t[most_maps], dx;
  Ahead ahead;
  Index bytes;

  MapsBackward(const MapsSizes& size, void* memory) {
    Workspace<Layout> space(memory);
    for (int m = 0; m < most_maps; ++m) {
      w[m] = space.matrix(size.outputs[m], size.width), g[m] = space.matrix(block_rows, size.outputs[m]);
      dw_t[m] = space.matrix(size.width, size.outputs[m]);
    }
    dx = space.matrix(block_rows, size.width);
    bytes = space.bytes();
  }

  void run(const MapsProblem& problem, Index group, Index) {
    const Index width = problem.size.width;
    const Index* const outputs = problem.size.outputs;
    for (int m = 0; m < most_maps; ++m) {
      copy_rows(w[m].data, w[m].rows, problem.w[m], problem.w_rows[m], outputs[m], width);
      clear<Layout>(dw_t[m], 0, width);
    }
    each_block(problem.size.rows, group, [&](Index row, Index n, Index next) {
      const auto x = rows_from(problem.x, width, row);
      ahead.finish();
      if (problem.dx != nullptr) ask_for_matrix(ahead, rows_from(problem.dx, width, row), n);
      ask_for_matrix(ahead, rows_from(problem.x, width, row + n), next);
      for (int m = 0; m < most_maps; ++m)
        ask_for_matrix(ahead, rows_from(problem.g[m], outputs[m], row + n), next);
      View<const Element> pulled[most_maps];
      for (int m = 0; m < most_maps; ++m) {
        pulled[m] = rows_from(problem.g[m], outputs[m], row);
        if (!fills_registers<Layout>(outputs[m])) {
          copy_rows(g[m].data, g[m].rows, pulled[m].data, outputs[m], n, outputs[m]);
          pulled[m] = constant(g[m]);
        }
        trimmed_product<Layout, Into::add>(ahead, dw_t[m], width, outputs[m], plus(x.transposed(), pulled[m], n));
      }
      if (problem.dx == nullptr) return;
      const auto to = rows_to_write<Layout>(problem.dx, width, row, dx);
      trimmed_product<Layout, Into::assign>(ahead, to, n, width, plus(pulled[0], constant(w[0]), outputs[0]),
                                            plus(pulled[1], constant(w[1]), outputs[1]),
                                            plus(pulled[2], constant(w[2]), outputs[2]));
      finish_rows<Layout>(problem.dx, width, row, n, to);
    });
    float* to = problem.dweights + group * width * problem.size.all_outputs();
    for (int m = 0; m < most_maps; ++m) {
      transpose(to, width, dw_t[m].data, dw_t[m].rows, width, outputs[m]);
      to += width * outputs[m];
    }
  }
};

template <class Layout>
struct MlpForward {
  using Element = typename Layout::Element;
  using Vector = typename Layout::Vector;

  View<Element> w_1_t, w_2_t, hidden, y;
  Ahead ahead;
  Index bytes;

  MlpForward(const MlpSizes& size, void* memory) {
    Workspace<Layout> space(memory);
    w_1_t = space.matrix(size.width, size.hidden), w_2_t = space.matrix(size.hidden, size.width);
    hidden = space.matrix(block_rows, size.hidden), y = space.matrix(block_rows, size.width);
    bytes = space.bytes();
  }

  void run(const MlpProblem& problem, Index group, Index) {
    const Index width = problem.size.width, units = problem.size.hidden;
    transpose(w_1_t.data, w_1_t.rows, problem.w_1, width, units, width);
    transpose(w_2_t.data, w_2_t.rows, problem.w_2, units, width, units);
    each_block(problem.size.rows, group, [&](Index row, Index n, Index next) {
      const auto x = rows_from(problem.x, width, row);
      ahead.finish();
      ask_for_matrix(ahead, rows_from(problem.y, width, row), n);
      ask_for_matrix(ahead, rows_from(problem.x, width, row + n), next);
      product<Layout, Into::assign>(ahead, hidden, n, units, plus(x, constant(w_1_t), width));
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < units; j += Layout::width) {
          Element* const at = hidden.data + i * hidden.rows + j;
          const auto value = load<Vector>(at);
          store(at, Vector(value * Normal<Vector>(value).distribution));
        }
      const auto to = rows_to_write<Layout>(problem.y, width, row, y);
      trimmed_product<Layout, Into::assign>(ahead, to, n, width, plus(constant(hidden), constant(w_2_t), units));
      finish_rows<Layout>(problem.y, width, row, n, to);
    });
  }
};

// With h = W_1 x, a = gelu(h) and b = W_2^T g gelu'(h): dx = W_1^T b, dW_1 = sum of b x^T, dW_2 = sum of g a^T
template <class Layout>
struct MlpBackward {
  using Element = typename Layout::Element;
  using Vector = typename Layout::Vector;

  View<Element> w_1, w_1_t, w_2, hidden, pull, dx, dw_1_t, dw_2;
  Ahead ahead;
  Index bytes;

  MlpBackward(const MlpSizes& size, void* memory) {
    Workspace<Layout> space(memory);
    w_1 = space.matrix(size.hidden, size.width), w_1_t = space.matrix(size.width, size.hidden);
    w_2 = space.matrix(size.width, size.hidden);
    hidden = space.matrix(block_rows, size.hidden), pull = space.matrix(block_rows, size.hidden);
    dx = space.matrix(block_rows, size.width);
    dw_1_t = space.matrix(size.width, size.hidden), dw_2 = space.matrix(size.width, size.hidden);
    bytes = space.bytes();
  }

  void run(const MlpProblem& problem, Index group, Index) {
    const Index width = problem.size.width, units = problem.size.hidden;
    copy_rows(w_1.data, w_1.rows, problem.w_1, width, units, width);
    transpose(w_1_t.data, w_1_t.rows, problem.w_1, width, units, width);
    copy_rows(w_2.data, w_2.rows, problem.w_2, units, width, units);
    clear<Layout>(dw_1_t, 0, width);
    clear<Layout>(dw_2, 0, width);
    each_block(problem.size.rows, group, [&](Index row, Index n, Index next) {
      const auto x = rows_from(problem.x, width, row), g = rows_from(problem.g, width, row);
      ahead.finish();
      ask_for_matrix(ahead, rows_from(problem.dx, width, row), n);
      ask_for_matrix(ahead, rows_from(problem.x, width, row + n), next);
      ask_for_matrix(ahead, rows_from(problem.g, width, row + n), next);
      product<Layout, Into::assign>(ahead, hidden, n, units, plus(x, constant(w_1_t), width));
      product<Layout, Into::assign>(ahead, pull, n, units, plus(g, constant(w_2), width));
      for (Index i = 0; i < n; ++i)
        for (Index j = 0; j < units; j += Layout::width) {
          Element *const at = hidden.data + i * hidden.rows + j, *const pulled = pull.data + i * pull.rows + j;
          const auto value = load<Vector>(at);
          const Normal<Vector> normal(value);
          store(at, Vector(value * normal.distribution));
          store(pulled, Vector(load<Vector>(pulled) * (normal.distribution + value * normal.density)));
        }
      product<Layout, Into::add>(ahead, dw_1_t, width, units, plus(x.transposed(), constant(pull), n));
      product<Layout, Into::add>(ahead, dw_2, width, units, plus(g.transposed(), constant(hidden), n));
      const auto to = rows_to_write<Layout>(problem.dx, width, row, dx);
      trimmed_product<Layout, Into::assign>(ahead, to, n, width, plus(constant(pull), constant(w_1), units));
      finish_rows<Layout>(problem.dx, width, row, n, to);
    });
    float* const dweights = problem.dweights + group * 2 * width * units;
    transpose(dweights, width, dw_1_t.data, dw_1_t.rows, width, units);
    copy_rows(dweights + width * units, units, dw_2.data, dw_2.rows, width, units);
  }
};

}  // namespace MESASCOPE_ISA
