// Forgetting and write strengths: where chunks end, and what is left of their tokens.
#pragma once

#include "layout.h"

namespace MESASCOPE_ISA {

using mesascope::MesaProblem;

// Whether a number is above a limit, in any lane
template <class Layout>
inline bool exceeds(typename Layout::Element number, typename Layout::Number limit) {
  if constexpr (Layout::heads == 1) {
    return number > limit;
  } else {
    for (int lane = 0; lane < Layout::heads; ++lane)
      if (number[lane] > limit) return true;
    return false;
  }
}

// The gates of one chunk: where it ends, and its factors as columns of one number for each token.
template <class Layout>
struct Gates {
  using T = typename Layout::Number;
  using Element = typename Layout::Element;
  // dividing by m_t amplifies rounding by 1 / m_t: a chunk that decays further ends
  static constexpr T deepest_decay = T(-2);
  // a token that forgets more keeps this share, which is below the rounding of everything else, so that 1 / m_t exists
  static constexpr T least_log_forget = sizeof(T) == 4 ? T(-40) : T(-300);

  View<Element> log_forget, write, forget, decay;  // decay: m_t
  bool any = false;
  Element last_decay;  // m at the end of the chunk

  void allocate(Workspace<Layout>& space) {
    log_forget = space.matrix(Layout::chunk, 1), write = space.matrix(Layout::chunk, 1);
    forget = space.matrix(Layout::chunk, 1), decay = space.matrix(Layout::chunk, 1);
  }

  // loads the gates from `start` on and returns how many tokens the chunk holds
  Index begin(const MesaProblem<T>& problem, const Group<Layout>& group, Index start) {
    const Index left = problem.size.time - start;
    Index n = left < Layout::chunk ? left : Layout::chunk;
    any = problem.write.data != nullptr || problem.log_forget.data != nullptr;
    last_decay = Element{} + T(1);
    if (!any) return n;
    if (problem.write.data != nullptr) load_rows(write, problem.write, group, start, n, 1);
    if (problem.log_forget.data != nullptr) load_rows(log_forget, problem.log_forget, group, start, n, 1);
    Element sum{};
    for (Index t = 0; t < n; ++t) {
      if (problem.log_forget.data != nullptr) {
        const Element given = at(log_forget, t), least = Element{} + least_log_forget;
        sum += given > least ? given : least;
      }
      if (t > 0 && exceeds<Layout>(-sum, -deepest_decay)) {
        n = t;
        break;
      }
      at(decay, t) = map<T>(sum, +[](T x) -> T { return std::exp(x); });
      at(forget, t) = t > 0 ? Element(at(decay, t) / at(decay, t - 1)) : at(decay, t);
      if (problem.write.data == nullptr) at(write, t) = Element{} + T(1);
    }
    last_decay = at(decay, n - 1);
    return n;
  }

  Element at(const View<Element>& column, Index t) const { return column.data[t * column.rows]; }
  Element& at(View<Element>& column, Index t) { return column.data[t * column.rows]; }
  Element factor(Index t) const { return at(write, t) / at(decay, t); }
  Element root(Index t) const { return square_root<T>(factor(t)); }
  Element growth(Index t) const { return any ? Element(T(1) / at(decay, t)) : Element{} + T(1); }
};

}  // namespace MESASCOPE_ISA
