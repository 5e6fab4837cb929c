// Groups of heads or rows shared out among threads.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstring>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#if defined(_OPENMP)
#include <omp.h>
#endif

#include "kernels.h"
#include "pool.h"

namespace mesascope {

// The groups that one thread has still to do: it takes them in order, so that it knows the next one, and threads that
// have done theirs take them from the end. Aligned to lines of memory, so that threads do not share one.
class alignas(64) Share {
 public:
  void set(Index begin, Index end) { left_.store(packed(begin, end), std::memory_order_relaxed); }

  // the first group and the one that follows it, or no_group
  std::pair<Index, Index> take_first() {
    const auto [begin, end] = take(1, 0);
    return {begin < end ? begin : no_group, begin + 1 < end ? begin + 1 : no_group};
  }

  Index take_last() {
    const auto [begin, end] = take(0, 1);
    return begin < end ? end - 1 : no_group;
  }

 private:
  // both in one number, so that two threads never take the same group
  std::atomic<std::uint64_t> left_{0};

  static std::uint64_t packed(Index begin, Index end) { return std::uint64_t(begin) << 32 | std::uint64_t(end); }

  // begin and end before so many groups were taken, if any were left
  std::pair<Index, Index> take(Index first, Index last) {
    std::uint64_t left = left_.load(std::memory_order_relaxed);
    for (;;) {
      const Index begin = Index(left >> 32), end = Index(left & 0xffffffff);
      if (begin >= end) return {begin, end};
      if (left_.compare_exchange_weak(left, packed(begin + first, end - last), std::memory_order_relaxed))
        return {begin, end};
    }
  }
};

// Bytes between the memory of two threads. A processor that is asked for a line fetches others of the same page, too, and
// takes them away from the thread that writes them: LayerNorm, whose few lines lay next to another thread's, took twice as
// long backward.
inline constexpr Index between_workers = 4096;

// Runs `kernel` over all groups on at most `threads` threads. Each group is one thread's work from start to end, so
// the result does not depend on how many there are.
//
// With OpenMP the threads are torch's own: the runtime it has loaded serves this module as well. Threads of another
// pool would share the cores with torch's, which spin for milliseconds after each of its operations. Without OpenMP
// threads are made for the call.
template <class Problem>
void run_groups(const Kernel<Problem>& kernel, const Problem& problem, Index groups, int threads) {
  const Index workers = std::max<Index>(1, std::min<Index>(threads, groups));
  const Index bytes = (kernel.workspace(problem.size) + 63) / 64 * 64, distance = bytes + between_workers;
  const Borrowed memory(std::size_t(workers * distance));
  std::vector<Share> shares(static_cast<std::size_t>(workers));
  for (Index worker = 0; worker < workers; ++worker)
    shares[worker].set(groups * worker / workers, groups * (worker + 1) / workers);
  const auto work = [&](Index worker) {
    void* const workspace = memory.data() + worker * distance;
    if (kernel.padded) std::memset(workspace, 0, std::size_t(bytes));
    for (;;) {
      const auto [group, next] = shares[worker].take_first();
      if (group == no_group) break;
      kernel.run(problem, group, next, workspace);
    }
    // those of a thread that is held up, or that there never was
    for (Index other = worker + 1; other < worker + workers; ++other)
      for (Index group; (group = shares[other % workers].take_last()) != no_group;)
        kernel.run(problem, group, no_group, workspace);
  };
#if defined(_OPENMP)
#pragma omp parallel num_threads(static_cast<int>(workers))
  work(omp_get_thread_num());
#else
  std::vector<std::thread> others;
  for (Index worker = 1; worker < workers; ++worker) {
    try {
      others.emplace_back(work, worker);
    } catch (const std::system_error&) {
      break;  // no more threads to be had: the ones there are do the work
    }
  }
  work(0);
  for (std::thread& other : others) other.join();
#endif
}

}  // namespace mesascope
