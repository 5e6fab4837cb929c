// Gradients of weights that groups of rows have summed, each for itself, summed over the groups in float64.
#pragma once

#include "problem.h"
#include "simd.h"

namespace MESASCOPE_ISA {

using mesascope::sums_at_once;
using mesascope::SumsProblem;
using mesascope::SumsSizes;

template <class Layout>
struct Sums {
  Index bytes = 0;

  Sums(const SumsSizes&, void*) {}

  void run(const SumsProblem& problem, Index group, Index) {
    const Index first = group * sums_at_once, left = problem.size.numbers - first;
    const Index n = left < sums_at_once ? left : sums_at_once;
    double sums[sums_at_once] = {};
    for (Index part = 0; part < problem.size.parts; ++part) {
      const float* const numbers = problem.parts + part * problem.size.numbers + first;
      for (Index i = 0; i < n; ++i) sums[i] += numbers[i];
    }
    for (Index i = 0; i < n; ++i) problem.sums[first + i] = float(sums[i]);
  }
};

}  // namespace MESASCOPE_ISA
