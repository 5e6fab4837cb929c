// Groups of heads shared out among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels.h"
#include "pool.h"

namespace mesascope {

// Runs `kernel` over all groups on at most `threads` threads. Each group is one thread's work from start to end, so
// the result does not depend on how many there are.
//
// With OpenMP the threads are torch's own: the runtime it has loaded serves this module as well. Threads of another
// pool would share the cores with torch's, which spin for milliseconds after each of its operations. Without OpenMP
// threads are made for the call.
template <class Problem>
void run_groups(const Kernel<Problem>& kernel, const Problem& problem, Index groups, int threads) {
  const Index workers = std::max<Index>(1, std::min<Index>(threads, groups));
  // many blocks for each thread, so that one that is held up does not hold up the call
  const Index block = std::max<Index>(1, groups / (32 * workers));
  const Index bytes = (kernel.workspace(problem.size) + 63) / 64 * 64;
  const Borrowed memory(std::size_t(workers * bytes));
  std::atomic<Index> next{0};
  const auto work = [&](void* workspace) {
    std::memset(workspace, 0, std::size_t(bytes));
    for (Index begin; (begin = next.fetch_add(block)) < groups;)
      kernel.run(problem, begin, std::min(begin + block, groups), workspace);
  };
#if defined(_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(workers))
  work(memory.data() + omp_get_thread_num() * bytes);
#else
  std::vector<std::thread> others;
  for (Index worker = 1; worker < workers; ++worker) {
    try {
      others.emplace_back(work, memory.data() + worker * bytes);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: the ones there are do the work
    }
  }
  work(memory.data());
  for (std::thread& other : others) other.join();
#endif
}

}  // namespace mesascope
