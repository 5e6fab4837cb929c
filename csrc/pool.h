// Memory that is kept for the next caller: fresh pages cost as much as the kernels that fill them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>
#include <vector>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace mesascope {

// Blocks of memory with whatever is in them. Up to `most_kept` bytes of those given back wait for a caller that asks
// for as many, the ones that wait longest are released for more.
class Pool {
 public:
  static constexpr std::size_t most_kept = std::size_t(64) << 20;

  // never destroyed: tensors give memory back until the very end of the program
  static Pool& shared() {
    static Pool& pool = *new Pool;
    return pool;
  }

  void* take(std::size_t bytes) {
    bytes = rounded(bytes);
    const std::lock_guard<std::mutex> guard(lock_);
    for (std::size_t i = kept_.size(); i-- > 0;) {
      if (kept_[i].bytes != bytes) continue;
      void* const data = kept_[i].data;
      kept_.erase(kept_.begin() + std::ptrdiff_t(i));
      kept_bytes_ -= bytes;
      return data;
    }
    void* const data = ::operator new(bytes, alignment(bytes));
#if defined(MADV_HUGEPAGE)
    // a hint: where there are no huge pages nothing is lost
    if (bytes >= huge) ::madvise(data, bytes, MADV_HUGEPAGE);
#endif
    return data;
  }

  void give_back(void* data, std::size_t bytes) noexcept {
    bytes = rounded(bytes);
    const std::lock_guard<std::mutex> guard(lock_);
    if (bytes > most_kept || !keep({data, bytes})) return release({data, bytes});
    while (kept_bytes_ > most_kept) {
      release(kept_.front());
      kept_bytes_ -= kept_.front().bytes;
      kept_.erase(kept_.begin());
    }
  }

 private:
  struct Block {
    void* data;
    std::size_t bytes;
  };
  // size of a huge page, which is one entry of the address cache where small pages are 512
  static constexpr std::size_t huge = std::size_t(2) << 20, small = 4096;

  // few sizes, so that blocks fit again; huge pages from half of one on
  static std::size_t rounded(std::size_t bytes) {
    const std::size_t unit = bytes > huge / 2 ? huge : small;
    return (bytes + unit - 1) / unit * unit;
  }
  static std::align_val_t alignment(std::size_t bytes) { return std::align_val_t(bytes >= huge ? huge : 64); }
  static void release(const Block& block) { ::operator delete(block.data, alignment(block.bytes)); }

  bool keep(const Block& block) noexcept {
    try {
      kept_.push_back(block);
    } catch (const std::bad_alloc&) {
      return false;
    }
    kept_bytes_ += block.bytes;
    return true;
  }

  std::mutex lock_;
  std::vector<Block> kept_;
  std::size_t kept_bytes_ = 0;
};

// A block of the pool for the time of a call.
class Borrowed {
 public:
  explicit Borrowed(std::size_t bytes) : bytes_(bytes), data_(Pool::shared().take(bytes)) {}
  ~Borrowed() { Pool::shared().give_back(data_, bytes_); }
  Borrowed(const Borrowed&) = delete;
  Borrowed& operator=(const Borrowed&) = delete;
  char* data() const { return static_cast<char*>(data_); }

 private:
  std::size_t bytes_;
  void* data_;
};

}  // namespace mesascope
