// What tells how many digits mesa attention keeps, found while its operands are at hand.
//
// Rounding costs digits where a key is new, as many as its gain write_t k_t . R k_t has; and as many as the condition number
// of H_t has for queries of all directions alike, |H_t| |R| / sqrt(D) with the Frobenius norm of R. The matrix H_t is
// nowhere. While that does not matter its trace bounds it; then its largest eigenvalue is estimated from products of
// C = sum_i k_i k_i^T, with effective keys, and two random vectors p, for
//
//     |C p|^2 / p . C p <= |C|.
//
// That is exact for keys along a line, and near it if one direction stands out or all are alike.
#pragma once

#include "gates.h"

namespace MESASCOPE_ISA {

// Numbers between -1 and 1 as if drawn at random, the same in every run
template <class T>
inline T random_number(Index index) {
  std::uint64_t bits = std::uint64_t(index + 1) * 0x9e3779b97f4a7c15u;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
  return T(std::int32_t((bits ^ (bits >> 31)) >> 32)) / T(2147483648.0);
}

template <class Layout>
struct Evidence {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  using Vector = typename Layout::Vector;
  static constexpr Index chunk = Layout::chunk, width = Layout::width;
  static constexpr int probes = 2;
  // up to this condition number, the bound is good enough; where R can grow again there is no such number
  static constexpr T harmless = T(64);

  View<Element> row;       // the largest gain, the largest condition number, and 0 times the sum of all keys and outputs
  View<Element> random;    // p, a row for each probe
  View<Element> products;  // C p, of what is left of C
  View<Element> along;     // k_i . p in a chunk
  View<Element> solved;    // H^-1 p
  Element trace;           // of C
  Element bound, kept;     // on the rest of H_t, which is forgotten, and on a ridge that is not
  Element spread;          // |R| / sqrt(D) before the chunk
  Element widest;          // which a ridge that is not forgotten keeps it below
  Vector zeros;
  bool keeps_ridge, forgetting, estimating;
  Index chunks;

  void allocate(Workspace<Layout>& space, Index dim) {
    row = space.matrix(1, 3), random = space.matrix(probes, dim), products = space.matrix(probes, dim);
    along = space.matrix(1, chunk), solved = space.matrix(1, dim);
  }

  // with the largest eigenvalue of H_0 and its inverse, or the diagonal of that as a row
  void begin(Element largest, View<const Element> inverse, Index rows, Index dim, bool forgets) {
    reset(dim);
    bound = largest, kept = Element{}, spread = size(inverse, rows, dim);
    keeps_ridge = false, forgetting = estimating = forgets;
  }

  // with a ridge that is not forgotten, and the largest eigenvalue of C_0
  void begin_constant(Element largest_ridge, Element smallest_ridge, Element largest, Index dim) {
    reset(dim);
    bound = largest, kept = largest_ridge, spread = widest = T(1) / smallest_ridge;
    keeps_ridge = forgetting = estimating = true;
  }

  // effective keys of a chunk, as rows and transposed
  void add_keys(View<const Element> k, View<const Element> k_t, const Gates<Layout>& gates, Index n, Index dim) {
    Vector squares{};
    for (Index t = 0; t < chunk; t += width) {
      const View<const Element> tokens = k_t.from_column(t);
      const Vector square = sum_over(dim, [&](Index d) {
        const Vector x = load<Vector>(tokens.data + d * tokens.rows);
        return Vector(x * x);
      });
      squares += square;
      if (keeps_ridge) store(along.data + t, square);
    }
    zeros += T(0) * squares;
    Element grown = spread / gates.last_decay;
    if (keeps_ridge) {
      grown = grown < widest ? grown : widest;
      for (Index t = 0; t < n; ++t) raise(row.data[0], along.data[t] * gates.at(gates.decay, t) * widest);
    }
    const Element added = sum_lanes<Layout>(squares) * gates.last_decay;
    bound *= gates.last_decay, trace *= gates.last_decay;
    if (!estimating) estimating = exceeds<Layout>((bound + added) * grown, harmless);
    if (estimating) add_to_products(k, k_t, gates, n, dim);
    (estimating ? trace : bound) += added;
    raise(row.data[1], (kept + bound + estimate(dim)) * grown);
  }

  // from I + K R K^T without I
  void add_gains(View<const Element> gram, Index n) {
    for (Index t = 0; t < n; ++t) raise(row.data[0], gram.data[t * gram.rows + t]);
  }

  // R before the next chunk; where it only shrinks, after 1, 2, 4 ... chunks, and not while it does not matter
  void measure(View<const Element> inverse, Index dim) {
    ++chunks;
    const bool matters = estimating || exceeds<Layout>(bound * spread, harmless / 2);
    if (forgetting || (matters && (chunks & (chunks - 1)) == 0)) spread = size(inverse, dim, dim);
  }

  // the same for a ridge that is not forgotten, where `solve(y, x)` sets y = H^-1 x: |H^-1 p| / |p| is as large on average
  template <class Solve>
  void measure_by(Solve solve, Index dim) {
    Element found{};
    for (int probe = 0; probe < probes; ++probe) {
      solve(solved.data, random.from_row(probe).data);
      found += sum_of_squares(constant(solved), 1, dim) / sum_of_squares(constant(random.from_row(probe)), 1, dim);
    }
    spread = square_root<T>(Element(found / T(probes)));
  }

  // sums of rows, so that only they wait for each other
  void add_outputs(View<const Element> o, Index n, Index columns) {
    for (Index t = 0; t < n; ++t) {
      Vector total{};
      for (Index d = 0; d < columns; d += width) total += load<Vector>(o.data + t * o.rows + d);
      zeros += T(0) * total;
    }
  }

  void finish(const MesaProblem<T>& problem, const Group<Layout>& group) {
    row.data[2] = sum_lanes<Layout>(zeros);
    store_rows(problem.evidence, constant(row), group, 0, 1, 3);
  }

 private:
  void reset(Index dim) {
    clear<Layout>(row, 0, 1), clear<Layout>(products, 0, probes);
    for (int probe = 0; probe < probes; ++probe)
      for (Index d = 0; d < dim; ++d) random.from_row(probe).data[d] = Element{} + random_number<T>(probes * d + probe);
    zeros = Vector{}, trace = Element{}, chunks = 0;
  }

  // not less than a value, and NaN if either is
  static void raise(Element& largest, Element value) { largest = (value > largest) | (value != value) ? value : largest; }

  // what is left of the products, and the tokens of a chunk
  void add_to_products(View<const Element> k, View<const Element> k_t, const Gates<Layout>& gates, Index n, Index dim) {
    for (int probe = 0; probe < probes; ++probe) {
      const Element* p = random.from_row(probe).data;
      for (Index t = 0; t < chunk; t += width) {
        const View<const Element> tokens = k_t.from_column(t);
        store(along.data + t, sum_over(dim, [&](Index d) {
                               return Vector(load<Vector>(tokens.data + d * tokens.rows) * p[d]);
                             }));
      }
      Element* product = products.from_row(probe).data;
      for (Index d = 0; d < dim; d += width) {
        Vector total = load<Vector>(product + d);
        for (Index t = 0; t < n; ++t) total += along.data[t] * load<Vector>(k.data + t * k.rows + d);
        store(product + d, Vector(total * gates.last_decay));
      }
    }
  }

  // of the largest eigenvalue of C; at least the mean of all
  Element estimate(Index dim) const {
    if (!estimating) return Element{};
    Element largest = trace / T(dim);
    for (int probe = 0; probe < probes; ++probe) {
      const Element *p = random.from_row(probe).data, *product = products.from_row(probe).data;
      const Vector inner = sum_over(round_up(dim, width) / width, [&](Index d) {
        return Vector(load<Vector>(p + d * width) * load<Vector>(product + d * width));
      });
      const Element square = sum_of_squares(constant(products.from_row(probe)), 1, dim), mean = sum_lanes<Layout>(inner);
      const Element found = square < trace * mean ? Element(square / mean) : trace;  // of rounding, if it is more
      raise(largest, found);
    }
    return largest;
  }

  // the Frobenius norm of a matrix, or of a diagonal one given by a row, over sqrt(D)
  static Element size(View<const Element> matrix, Index rows, Index dim) {
    return square_root<T>(Element(sum_of_squares(matrix, rows, dim) / T(dim)));
  }

  static Element sum_of_squares(View<const Element> matrix, Index rows, Index dim) {
    return sum_lanes<Layout>(sum_over(rows, [&](Index i) {
      Vector squares{};
      for (Index d = 0; d < dim; d += width) {
        const Vector x = load<Vector>(matrix.data + i * matrix.rows + d);
        squares += x * x;
      }
      return squares;
    }));
  }

  // in four sums, which do not wait for each other
  template <class Term>
  static Vector sum_over(Index count, Term term) {
    Vector sums[4] = {};
    Index i = 0;
    for (; i + 4 <= count; i += 4)
      for (int part = 0; part < 4; ++part) sums[part] += term(i + part);
    for (; i < count; ++i) sums[0] += term(i);
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }
};

}  // namespace MESASCOPE_ISA
