// What tells how many digits mesa attention keeps, found while its operands are at hand.
//
// Rounding costs digits where a key is new, as many as its gain write_t k_t . R k_t has; and as many as the condition number
// of H_t has for queries of all directions alike, |H_t| |R| / sqrt(D) with the Frobenius norm of R. The matrix H_t is
// nowhere. While that does not matter its trace bounds it; then its largest eigenvalue is estimated, for
//
//     |sum_i +- |k_i| k_i|^2 / sum_i |k_i|^2 <= |sum_i k_i k_i^T|
//
// with any signs, best with those of k_i . (the sum before its chunk), where k_i are effective keys. For keys along a line
// that is exact, for random ones two thirds.
#pragma once

#include "gates.h"

namespace MESASCOPE_ISA {

template <class Layout>
struct Evidence {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  using Vector = typename Layout::Vector;
  static constexpr Index chunk = Layout::chunk, width = Layout::width;
  // up to this condition number, the bound is good enough; where R can grow again there is no such number
  static constexpr T harmless = T(64);
  // the sum before the first chunk, and in place of zero, for the sake of the signs
  static constexpr T nudge = T(1e-20);

  View<Element> row;      // the largest gain, the largest condition number, and 0 times the sum of all keys and outputs
  View<Element> sum;      // of +- |k_i| k_i, of what is left of them
  View<Element> norms;    // |k_i|^2 in a chunk, then +- |k_i|
  Element trace;          // of what is in the sum
  Element bound, kept;    // on the rest of H_t, which is forgotten, and on a ridge that is not
  Element spread;         // |R| / sqrt(D) before the chunk
  Element widest;         // which a ridge that is not forgotten keeps it below
  Vector zeros;
  bool constant, forgetting, estimating;
  Index chunks;

  void allocate(Workspace<Layout>& space, Index dim) {
    row = space.matrix(1, 3), sum = space.matrix(1, dim), norms = space.matrix(1, Layout::chunk);
  }

  // with the largest eigenvalue of H_0 and its inverse, or the diagonal of that as a row
  void begin(Element largest, View<const Element> inverse, Index rows, Index dim, bool forgets) {
    clear(dim);
    bound = largest, kept = Element{}, spread = size(inverse, rows, dim);
    constant = false, forgetting = estimating = forgets;
  }

  // with a ridge that is not forgotten, and the trace of C_0
  void begin_constant(Element largest_ridge, Element smallest_ridge, Element start, Index dim) {
    clear(dim);
    bound = start, kept = largest_ridge, spread = widest = T(1) / smallest_ridge;
    constant = forgetting = estimating = true;
  }

  // effective keys of a chunk, as rows and transposed
  void add_keys(View<const Element> k, View<const Element> k_t, const Gates<Layout>& gates, Index n, Index dim) {
    Vector squares{};
    for (Index t = 0; t < chunk; t += width) {
      const View<const Element> tokens = k_t.from_column(t);
      const Vector norm = sum_over(dim, [&](Index d) {
        const Vector x = load<Vector>(tokens.data + d * tokens.rows);
        return Vector(x * x);
      });
      squares += norm;
      MESASCOPE_ISA::store(norms.data + t, norm);
    }
    zeros += T(0) * squares;
    Element grown = spread / gates.last_decay;
    if (constant) {
      grown = grown < widest ? grown : widest;
      for (Index t = 0; t < n; ++t) raise(row.data[0], norms.data[t] * gates.at(gates.decay, t) * widest);
    }
    const Element added = sum_lanes<Layout>(squares) * gates.last_decay;
    bound *= gates.last_decay, trace *= gates.last_decay;
    if (!estimating) estimating = exceeds<Layout>((bound + added) * grown, harmless);
    if (estimating) add_to_sum(k, k_t, gates, n, dim);
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

  // from the Cholesky factor of H_t, with inverses on its diagonal: the squares of these are those of H_t^-1 as far as later
  // coordinates do not matter
  void measure_factor(View<const Element> factor, Index dim) {
    Element squares{};
    for (Index d = 0; d < dim; ++d) {
      const Element inverse = factor.data[d * factor.rows + d] * factor.data[d * factor.rows + d];
      squares += inverse * inverse;
    }
    spread = square_root<T>(Element(squares / T(dim)));
  }

  // sums of rows, so that only they wait for each other
  void add_outputs(View<const Element> o, Index n, Index columns) {
    for (Index t = 0; t < n; ++t) {
      Vector total{};
      for (Index d = 0; d < columns; d += width) total += load<Vector>(o.data + t * o.rows + d);
      zeros += T(0) * total;
    }
  }

  void store(const MesaProblem<T>& problem, const Group<Layout>& group) {
    row.data[2] = sum_lanes<Layout>(zeros);
    store_rows(problem.evidence, constant_view(), group, 0, 1, 3);
  }

 private:
  void clear(Index dim) {
    MESASCOPE_ISA::clear<Layout>(row, 0, 1), MESASCOPE_ISA::clear<Layout>(sum, 0, 1);
    for (Index d = 0; d < dim; ++d) sum.data[d] = Element{} + nudge;
    zeros = Vector{}, trace = Element{}, chunks = 0;
  }

  View<const Element> constant_view() const { return {row.data, row.rows}; }

  static void raise(Element& largest, Element value) { largest = largest > value ? largest : value; }

  void add_to_sum(View<const Element> k, View<const Element> k_t, const Gates<Layout>& gates, Index n, Index dim) {
    for (Index t = 0; t < chunk; t += width) {
      const View<const Element> tokens = k_t.from_column(t);
      const Vector along =
          sum_over(dim, [&](Index d) { return Vector(load<Vector>(tokens.data + d * tokens.rows) * sum.data[d]); });
      const Vector norm = square_root<T>(load<Vector>(norms.data + t));
      MESASCOPE_ISA::store(norms.data + t, Vector(along < T(0) ? -norm : norm));
    }
    for (Index d = 0; d < dim; d += width) {
      Vector total = load<Vector>(sum.data + d);
      for (Index t = 0; t < n; ++t) total += norms.data[t] * load<Vector>(k.data + t * k.rows + d);
      MESASCOPE_ISA::store(sum.data + d, Vector(total * gates.last_decay + nudge));
    }
  }

  // of the largest eigenvalue; not more than the trace, beside which the nudge may be large
  Element estimate(Index dim) const {
    if (!estimating) return Element{};
    const Element square = sum_of_squares({sum.data, sum.rows}, 1, dim);
    return square < trace * trace ? Element(square / trace) : trace;
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
