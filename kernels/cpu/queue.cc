// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu/queue.h"

#include <sys/mman.h>

#include <algorithm>
#include <utility>

#include "kernels/core/check.h"
#include "kernels/core/memory.h"
#include "kernels/cpu/thread_pool.h"

namespace annulus::kernels {

struct CpuQueue::Block {
  explicit Block(int64_t size) : memory(allocate_aligned(size)), bytes(size) {}
  AlignedBytes memory;
  int64_t bytes;
};

CpuQueue::Memory::Memory(int64_t bytes, std::string_view what) {
  void* const data = mmap(nullptr, static_cast<size_t>(bytes), PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw DeviceError(concat("cannot reserve ", bytes, " bytes", what));
  data_ = static_cast<std::byte*>(data);
  bytes_ = bytes;
}
CpuQueue::Memory::~Memory() {
  if (data_ != nullptr) munmap(data_, static_cast<size_t>(bytes_));
}

CpuQueue::CpuQueue(int threads, CpuIsa isa)
    : isa_(std::min(isa, detect_cpu_isa())), pool_(std::make_unique<ThreadPool>(threads)) {}
CpuQueue::~CpuQueue() = default;

int CpuQueue::threads() const {
  return pool_->threads();
}

void CpuQueue::parallel_for(int64_t tasks,
                            const std::function<void(int64_t index, int thread)>& body) {
  pool_->run(tasks, body, poll_);
}

void CpuQueue::set_poll(std::function<void()> poll) {
  poll_ = std::move(poll);
}

void* CpuQueue::allocate(int64_t bytes) {
  ANNULUS_CHECK(bytes >= 0, bytes);
  bytes = (bytes + 63) / 64 * 64;
  if (block_ == 0 && used_ == 0 && blocks_.size() > 1) {
    // Nothing is in use: the pieces of the first pass become one block.
    int64_t total = 0;
    for (const auto& block : blocks_) total += block->bytes;
    blocks_.clear();
    blocks_.push_back(std::make_unique<Block>(total));
  }
  while (block_ < blocks_.size() && used_ + bytes > blocks_[block_]->bytes) {
    ++block_;
    used_ = 0;
  }
  int64_t before = 0;
  for (size_t b = 0; b < block_; ++b) before += blocks_[b]->bytes;
  if (block_ == blocks_.size())
    blocks_.push_back(std::make_unique<Block>(std::max({bytes, before, int64_t{1} << 20})));
  void* result = blocks_[block_]->memory.get() + used_;
  used_ += bytes;
  peak_ = std::max(peak_, before + used_);
  return result;
}

}  // namespace annulus::kernels
