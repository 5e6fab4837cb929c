// The kernels as a table: one row of the table for each number type, one table for each instruction set.
#pragma once

#include "problem.h"

namespace mesascope {

inline constexpr Index no_group = -1;

// A kernel treats one group of heads or rows with `workspace` bytes of its own, aligned to 64 and, if it is `padded`, zero
// before the first call; kernels of attention ask for the operands of the group that comes next.
template <class Problem>
struct Kernel {
  Index (*workspace)(const decltype(Problem::size)&);
  bool padded;
  void (*run)(const Problem&, Index group, Index next, void* memory);
};

template <class T>
struct KernelSet {
  Index heads_per_group;
  Index (*saved)(const Sizes&);  // numbers of MesaProblem::saved for each group
  Kernel<LinearProblem<T>> linear_forward, linear_backward;
  Kernel<SoftmaxProblem<T>> softmax_forward, softmax_backward;  // null without heads in lanes
  Kernel<MesaProblem<T>> mesa_forward, mesa_backward;
};

struct Table {
  const char* name;
  KernelSet<float> float_lanes, float_columns;
  KernelSet<double> double_lanes, double_columns;
  Kernel<MapsProblem> maps_forward, maps_backward;
  Kernel<MlpProblem> mlp_forward, mlp_backward;
  Kernel<NormProblem> norm_forward, norm_backward;
  Kernel<SumsProblem> sums;
};

}  // namespace mesascope
