// Compiled once for each instruction set, with MESASCOPE_ISA naming the namespace.
#include "kernels.h"

#include <type_traits>

#include "dense.h"
#include "linear.h"
#include "mesa.h"
#include "norm.h"
#include "softmax.h"
#include "sums.h"

namespace MESASCOPE_ISA {
namespace {

template <template <class> class Kind, class Layout, class Problem>
constexpr mesascope::Kernel<Problem> kernel() {
  using Implementation = Kind<Layout>;
  return {[](const decltype(Problem::size)& size) { return Implementation(size, nullptr).bytes; }, Layout::width > 1,
          [](const Problem& problem, Index group, Index next, void* memory) {
            Implementation(problem.size, memory).run(problem, group, next);
          }};
}

template <class Layout>
constexpr mesascope::KernelSet<typename Layout::Number> kernel_set() {
  using T = typename Layout::Number;
  mesascope::KernelSet<T> set{};
  set.heads_per_group = Layout::heads;
  set.saved = &mesa_saved<Layout>;
  set.linear_forward = kernel<LinearForward, Layout, LinearProblem<T>>();
  set.linear_backward = kernel<LinearBackward, Layout, LinearProblem<T>>();
  set.mesa_forward = kernel<MesaForward, Layout, MesaProblem<T>>();
  set.mesa_backward = kernel<MesaBackward, Layout, MesaProblem<T>>();
  if constexpr (Layout::heads > 1) {
    set.softmax_forward = kernel<SoftmaxForward, Layout, SoftmaxProblem<T>>();
    set.softmax_backward = kernel<SoftmaxBackward, Layout, SoftmaxProblem<T>>();
  }
  return set;
}

}  // namespace

#define MESASCOPE_TEXT(name) #name
#define MESASCOPE_NAME(name) MESASCOPE_TEXT(name)

extern const mesascope::Table table;
const mesascope::Table table{MESASCOPE_NAME(MESASCOPE_ISA),
                             kernel_set<HeadsInLanes<float>>(),
                             kernel_set<ColumnsInLanes<float>>(),
                             kernel_set<HeadsInLanes<double>>(),
                             kernel_set<ColumnsInLanes<double>>(),
                             kernel<MapsForward, ColumnsInLanes<float>, MapsProblem>(),
                             kernel<MapsBackward, ColumnsInLanes<float>, MapsProblem>(),
                             kernel<MlpForward, ColumnsInLanes<float>, MlpProblem>(),
                             kernel<MlpBackward, ColumnsInLanes<float>, MlpProblem>(),
                             kernel<NormForward, ColumnsInLanes<float>, NormProblem>(),
                             kernel<NormBackward, ColumnsInLanes<float>, NormProblem>(),
                             kernel<Sums, ColumnsInLanes<float>, SumsProblem>()};

}  // namespace MESASCOPE_ISA
