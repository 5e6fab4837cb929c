// Causal softmax attention of short sequences: all keys and values of a group of heads, and their gradients, stay in
// the cache. No memory is asked for ahead: it did not pay here.
#pragma once

#include "functions.h"
#include "layout.h"

namespace MESASCOPE_ISA {

using mesascope::SoftmaxProblem;

// Queries treated at once, so that keys and values are read once for several of them.
inline constexpr Index softmax_rows = 10;

// What the forward pass leaves [B, H, T, 2] of the queries from `first` on, as one row of numbers
template <class T>
inline Operand<T> normalisers(T* all, const Sizes& size, Index first) {
  return {all + 2 * first, size.heads * 2 * size.time, 0, 2 * size.time, 1};
}

// scores = q k^T for n queries from `first` on, zero for the keys after each. All of them see the keys before `first`;
// the scores of the last n keys are a lower triangle.
template <class Layout, class Element>
inline void causal_scores(View<Element> scores, View<const Element> q, View<const Element> k, Index first, Index n,
                          Index dim) {
  product<Layout, Into::assign>(scores, n, first, plus(q, k.transposed(), dim));
  product<Layout, Into::assign, Part::lower>(scores.from_column(first), n, n,
                                             plus(q, k.from_row(first).transposed(), dim));
}

// out = scores v
template <class Layout, class Element>
inline void causal_sums(View<Element> out, View<const Element> scores, View<const Element> v, Index first, Index n,
                        Index dim) {
  product<Layout, Into::assign>(out, n, dim, plus(scores, v, first),
                                plus<Part::lower>(scores.from_column(first), v.from_row(first), n));
}

// out += scores^T g, for rows up to first + n, of which the last n had nothing before
template <class Layout, class Element>
inline void add_transposed_sums(View<Element> out, View<const Element> scores, View<const Element> g, Index first,
                                Index n, Index dim) {
  product<Layout, Into::add>(out, first, dim, plus(scores.transposed(), g, n));
  product<Layout, Into::assign>(out.from_row(first), n, dim,
                                plus<Part::upper>(scores.from_column(first).transposed(), g, n));
}

template <class Layout>
struct SoftmaxForward {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;

  View<Element> q, k, v, o, scores, normaliser;
  Index bytes;

  SoftmaxForward(const Sizes& size, void* memory) {
    Workspace<Layout> space(memory);
    q = space.matrix(softmax_rows, size.dim), k = space.matrix(size.time, size.dim);
    v = space.matrix(size.time, size.dim_v), o = space.matrix(softmax_rows, size.dim_v);
    scores = space.matrix(softmax_rows, size.time), normaliser = space.matrix(1, 2 * softmax_rows);
    bytes = space.bytes();
  }

  void run(const SoftmaxProblem<T>& problem, Index index, Index) {
    const auto [batch, time, heads, dim, dim_v] = problem.size;
    const Group<Layout> group(problem.size, index);
    load_rows(k, problem.k, group, 0, time, dim);
    load_rows(v, problem.v, group, 0, time, dim_v);
    for (Index first = 0; first < time; first += softmax_rows) {
      const Index n = time - first < softmax_rows ? time - first : softmax_rows;
      load_rows(q, problem.q, group, first, n, dim);
      scale<Layout>(q, Element{} + problem.scale, n, dim);
      causal_scores<Layout>(scores, constant(q), constant(k), first, n, dim);
      for (Index r = 0; r < n; ++r) {
        Element* row = scores.data + r * scores.rows;
        Element largest = row[0];
        for (Index i = 1; i <= first + r; ++i) largest = row[i] > largest ? row[i] : largest;
        Element sum{};
        for (Index i = 0; i <= first + r; ++i) sum += row[i] = exponential<T>(Element(row[i] - largest));
        normaliser.data[2 * r] = largest, normaliser.data[2 * r + 1] = T(1) / sum;
      }
      causal_sums<Layout>(o, constant(scores), constant(v), first, n, dim_v);
      scaled_rows<Layout>(o, constant(o), n, dim_v, [this](Index r) { return normaliser.data[2 * r + 1]; });
      store_rows(problem.o, constant(o), group, first, n, dim_v);
      store_rows(normalisers(problem.normaliser, problem.size, first), constant(normaliser), group, 0, 1, 2 * n);
    }
  }
};

// With p the weights: dv = p^T g, dp = g v^T, ds = p (dp - sum_i p dp), dq = scale ds k, dk = scale ds^T q
template <class Layout>
struct SoftmaxBackward {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;

  View<Element> q, k, v, g, dq, dk, dv, scores, pulled, normaliser;
  Index bytes;

  SoftmaxBackward(const Sizes& size, void* memory) {
    Workspace<Layout> space(memory);
    q = space.matrix(softmax_rows, size.dim), g = space.matrix(softmax_rows, size.dim_v);
    k = space.matrix(size.time, size.dim), v = space.matrix(size.time, size.dim_v);
    dq = space.matrix(softmax_rows, size.dim), dk = space.matrix(size.time, size.dim);
    dv = space.matrix(size.time, size.dim_v);
    scores = space.matrix(softmax_rows, size.time), pulled = space.matrix(softmax_rows, size.time);
    normaliser = space.matrix(1, 2 * softmax_rows);
    bytes = space.bytes();
  }

  void run(const SoftmaxProblem<T>& problem, Index index, Index) {
    const auto [batch, time, heads, dim, dim_v] = problem.size;
    const Group<Layout> group(problem.size, index);
    load_rows(k, problem.k, group, 0, time, dim);
    load_rows(v, problem.v, group, 0, time, dim_v);
    for (Index first = 0; first < time; first += softmax_rows) {
      const Index n = time - first < softmax_rows ? time - first : softmax_rows;
      load_rows(q, problem.q, group, first, n, dim);
      load_rows(g, problem.g, group, first, n, dim_v);
      load_rows(normaliser, normalisers<const T>(problem.normaliser, problem.size, first), group, 0, 1, 2 * n);
      // dk takes the scale with it
      scale<Layout>(q, Element{} + problem.scale, n, dim);
      causal_scores<Layout>(scores, constant(q), constant(k), first, n, dim);
      causal_scores<Layout>(pulled, constant(g), constant(v), first, n, dim_v);
      for (Index r = 0; r < n; ++r) {
        Element *row = scores.data + r * scores.rows, *pull = pulled.data + r * pulled.rows;
        const Element largest = normaliser.data[2 * r], inverse = normaliser.data[2 * r + 1];
        Element mean{};
        for (Index i = 0; i <= first + r; ++i) {
          row[i] = exponential<T>(Element(row[i] - largest)) * inverse;
          mean += row[i] * pull[i];
        }
        for (Index i = 0; i <= first + r; ++i) pull[i] = row[i] * (pull[i] - mean);
      }
      add_transposed_sums<Layout>(dv, constant(scores), constant(g), first, n, dim_v);
      causal_sums<Layout>(dq, constant(pulled), constant(k), first, n, dim);
      add_transposed_sums<Layout>(dk, constant(pulled), constant(q), first, n, dim);
      scale<Layout>(dq, Element{} + problem.scale, n, dim);
      store_rows(problem.dq, constant(dq), group, first, n, dim);
    }
    store_rows(problem.dk, constant(dk), group, 0, time, dim);
    store_rows(problem.dv, constant(dv), group, 0, time, dim_v);
  }
};

}  // namespace MESASCOPE_ISA
