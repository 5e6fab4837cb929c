// Causal linear attention, o_t = sum_{i <= t} v_i (k_i . q_t), in chunks of tokens with the sum of the past between them.
#pragma once

#include "layout.h"

namespace MESASCOPE_ISA {

using mesascope::LinearProblem;

// G, the sum of v k^T over the past, stored as [D, Dv] so that o = q G reads whole rows
template <class Layout>
struct LinearForward {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  static constexpr Index chunk = Layout::chunk;

  View<Element> q, k, v, o, scores, past, scratch;
  Index bytes;

  LinearForward(const Sizes& size, void* memory) {
    Workspace<Layout> space(memory);
    q = space.matrix(chunk, size.dim), k = space.matrix(chunk, size.dim);
    v = space.matrix(chunk, size.dim_v), o = space.matrix(chunk, size.dim_v);
    scores = space.matrix(chunk, chunk), past = space.matrix(size.dim, size.dim_v);
    scratch = space.matrix(size.dim, chunk);
    bytes = space.bytes();
  }

  void run(const LinearProblem<T>& problem, Index index) {
    const auto [batch, time, heads, dim, dim_v] = problem.size;
    const Group<Layout> group(problem.size, index);
    clear<Layout>(past, 0, dim);
    for (Index start = 0; start < time; start += chunk) {
      const Index n = time - start < chunk ? time - start : chunk;
      prefetch_rows(problem.q, group, problem.size, start + n, chunk, dim);
      prefetch_rows(problem.k, group, problem.size, start + n, chunk, dim);
      prefetch_rows(problem.v, group, problem.size, start + n, chunk, dim_v);
      prefetch_rows<true>(problem.o, group, problem.size, start, n, dim_v);
      load_rows(q, problem.q, group, start, n, dim);
      load_rows(k, problem.k, group, start, n, dim);
      load_rows(v, problem.v, group, start, n, dim_v);
      clear<Layout>(k, n, chunk);
      const auto k_t = transposed<Layout>(constant(k), chunk, dim, scratch);
      product<Layout, Into::assign, Part::all, Part::lower>(scores, constant(q), k_t, n, n, dim);
      keep<Layout, Part::lower>(scores, n, chunk);
      product<Layout, Into::assign, Part::lower>(o, constant(scores), constant(v), n, dim_v, n);
      if (start > 0) product<Layout, Into::add>(o, constant(q), constant(past), n, dim_v, dim);
      if (start + n < time) product<Layout, Into::add>(past, constant(k.transposed()), constant(v), dim, dim_v, n);
      store_rows(problem.o, constant(o), group, start, n, dim_v);
    }
  }
};

// First forward in time with G as [Dv, D], dq_t = G_t^T g_t; then backward with P, the sum of g q^T over the future:
// dv_i = P_i k_i, dk_i = P_i^T v_i
template <class Layout>
struct LinearBackward {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  static constexpr Index chunk = Layout::chunk;

  View<Element> q, k, v, g, out, out_v, scores, past, future, scratch, scratch_v, future_t;
  Rows<Layout> keys, values, gradients;
  bool kept;
  Index bytes;

  LinearBackward(const Sizes& size, void* memory) {
    Workspace<Layout> space(memory);
    kept = keep_rows<Layout>(size);
    keys.allocate(space, size.time, size.dim, kept, chunk), values.allocate(space, size.time, size.dim_v, kept, chunk);
    gradients.allocate(space, size.time, size.dim_v, kept, chunk);
    q = space.matrix(chunk, size.dim), out = space.matrix(chunk, size.dim), out_v = space.matrix(chunk, size.dim_v);
    scores = space.matrix(chunk, chunk);
    past = space.matrix(size.dim_v, size.dim), future = space.matrix(size.dim_v, size.dim);
    scratch = space.matrix(size.dim, chunk), scratch_v = space.matrix(size.dim_v, chunk);
    future_t = space.matrix(size.dim, size.dim_v);
    bytes = space.bytes();
  }

  void run(const LinearProblem<T>& problem, Index index) {
    const auto [batch, time, heads, dim, dim_v] = problem.size;
    const Group<Layout> group(problem.size, index);
    clear<Layout>(past, 0, dim_v);
    clear<Layout>(future, 0, dim_v);
    for (Index start = 0; start < time; start += chunk) {
      const Index n = load_chunk(problem, group, start);
      prefetch_chunk(problem, group, start + n);
      prefetch_rows<true>(problem.dq, group, problem.size, start, n, dim);
      const auto v_t = transposed<Layout>(constant(v), chunk, dim_v, scratch_v);
      product<Layout, Into::assign, Part::all, Part::lower>(scores, constant(g), v_t, n, n, dim_v);
      keep<Layout, Part::lower>(scores, n, chunk);
      product<Layout, Into::assign, Part::lower>(out, constant(scores), constant(k), n, dim, n);
      if (start > 0) product<Layout, Into::add>(out, constant(g), constant(past), n, dim, dim_v);
      if (start + n < time) product<Layout, Into::add>(past, constant(v.transposed()), constant(k), dim_v, dim, n);
      store_rows(problem.dq, constant(out), group, start, n, dim);
    }
    for (Index start = (time - 1) / chunk * chunk; start >= 0; start -= chunk) {
      const Index n = kept ? find_chunk(problem.size, start) : load_chunk(problem, group, start);
      if (start > 0) {
        if (!kept) prefetch_chunk(problem, group, start - chunk);
        prefetch_rows(problem.q, group, problem.size, start - chunk, chunk, dim);
      }
      prefetch_rows<true>(problem.dk, group, problem.size, start, n, dim);
      prefetch_rows<true>(problem.dv, group, problem.size, start, n, dim_v);
      load_rows(q, problem.q, group, start, n, dim);
      clear<Layout>(q, n, chunk);
      const bool last = start + n == time;
      const auto q_t = transposed<Layout>(constant(q), chunk, dim, scratch);
      product<Layout, Into::assign, Part::all, Part::upper>(scores, constant(k), q_t, n, n, dim);
      keep<Layout, Part::upper>(scores, n, chunk);
      product<Layout, Into::assign, Part::upper>(out_v, constant(scores), constant(g), n, dim_v, n);
      if (!last) {
        const auto future_view = transposed<Layout>(constant(future), dim_v, dim, future_t);
        product<Layout, Into::add>(out_v, constant(k), future_view, n, dim_v, dim);
      }
      const auto g_t = transposed<Layout>(constant(g), chunk, dim_v, scratch_v);
      product<Layout, Into::assign, Part::all, Part::upper>(scores, constant(v), g_t, n, n, dim_v);
      keep<Layout, Part::upper>(scores, n, chunk);
      product<Layout, Into::assign, Part::upper>(out, constant(scores), constant(q), n, dim, n);
      if (!last) product<Layout, Into::add>(out, constant(v), constant(future), n, dim, dim_v);
      if (start > 0) product<Layout, Into::add>(future, constant(g.transposed()), constant(q), dim_v, dim, n);
      store_rows(problem.dv, constant(out_v), group, start, n, dim_v);
      store_rows(problem.dk, constant(out), group, start, n, dim);
    }
  }

 private:
  void prefetch_chunk(const LinearProblem<T>& problem, const Group<Layout>& group, Index start) {
    const Sizes& size = problem.size;
    prefetch_rows(problem.k, group, size, start, chunk, size.dim);
    prefetch_rows(problem.v, group, size, start, chunk, size.dim_v);
    prefetch_rows(problem.g, group, size, start, chunk, size.dim_v);
  }

  // points k, v and g at the chunk that begins at `start` and returns its length
  Index find_chunk(const Sizes& size, Index start) {
    k = keys.at(start), v = values.at(start), g = gradients.at(start);
    return size.time - start < chunk ? size.time - start : chunk;
  }

  Index load_chunk(const LinearProblem<T>& problem, const Group<Layout>& group, Index start) {
    const Sizes& size = problem.size;
    const Index n = find_chunk(size, start);
    load_rows(k, problem.k, group, start, n, size.dim);
    load_rows(v, problem.v, group, start, n, size.dim_v);
    load_rows(g, problem.g, group, start, n, size.dim_v);
    clear<Layout>(v, n, chunk);
    clear<Layout>(g, n, chunk);
    return n;
  }
};

}  // namespace MESASCOPE_ISA
