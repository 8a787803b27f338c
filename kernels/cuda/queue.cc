// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda/queue.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "kernels/cuda/cudnn_attention.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/launch.h"

namespace annulus::kernels {
namespace {

constexpr int64_t kAlignment = 256;
constexpr int64_t kFirstBlock = int64_t{1} << 20;
// finish(): most decode steps end within a millisecond; whoever waits longer leaves its core.
constexpr std::chrono::microseconds kSpin{20}, kSleep{50}, kPollEvery{2000};
constexpr int64_t kTurns = 2;       // steps under way, as a rank has them
constexpr size_t kMostUnused = 64;  // pieces of retired memory

}  // namespace

absl::StatusOr<CudaDevice> find_cuda_device(int index) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("no GPU can be used: ", cudaGetErrorString(error),
                     "; CUDA needs an NVIDIA GPU and a driver for CUDA 13 (nvidia-smi says which "
                     "one is there); --device cpu needs neither"));
  }
  if (index < 0 || index >= count) {
    return absl::FailedPreconditionError(
        absl::StrCat("there is no GPU ", index, "; this machine has ", count));
  }
  cudaDeviceProp properties = {};
  if (const cudaError_t broken = cudaGetDeviceProperties(&properties, index);
      broken != cudaSuccess) {
    return absl::FailedPreconditionError(
        absl::StrCat("GPU ", index, " cannot be used: ", cudaGetErrorString(broken)));
  }
  if (properties.major != 9 || properties.minor != 0) {
    return absl::FailedPreconditionError(absl::StrCat(
        "GPU ", index, " (", properties.name, ") has compute capability ", properties.major, ".",
        properties.minor, "; the kernels are built for 9.0 (H100, H200)"));
  }
  return CudaDevice{index, properties.name};
}

std::string named(const CudaDevice& device) {
  return absl::StrCat("GPU ", device.index, " (", device.name, ")");
}

absl::StatusOr<int64_t> free_cuda_bytes(const CudaDevice& device) {
  size_t free = 0, total = 0;
  cudaError_t error = cudaSetDevice(device.index);
  if (error == cudaSuccess) error = cudaMemGetInfo(&free, &total);
  if (error == cudaSuccess) return static_cast<int64_t>(free);
  return absl::FailedPreconditionError(absl::StrCat(named(device),
                                                    " cannot be used: ", cudaGetErrorString(error),
                                                    "; nvidia-smi says who uses it"));
}

CudaQueue::Arena::~Arena() {
  for (const Block& block : blocks_) {
    if (place_ == Place::kDevice) {
      cudaFree(block.data);
    } else {
      cudaFreeHost(block.data);
    }
  }
}

void* CudaQueue::Arena::allocate(int64_t bytes) {
  bytes = ceil_div(std::max(bytes, int64_t{1}), kAlignment) * kAlignment;
  while (at_.block < blocks_.size() && at_.used + bytes > blocks_[at_.block].bytes) {
    at_.before += blocks_[at_.block].bytes;
    ++at_.block;
    at_.used = 0;
  }
  if (at_.block == blocks_.size()) {
    const int64_t last = blocks_.empty() ? kFirstBlock / 2 : blocks_.back().bytes;
    Block block;
    block.bytes = std::max(2 * last, bytes);
    void* data = nullptr;
    const auto size = static_cast<size_t>(block.bytes);
    if (place_ == Place::kDevice) {
      if (cudaMalloc(&data, size) != cudaSuccess) {
        throw DeviceError(concat("the GPU has no room for ", size,
                                 " bytes of scratch: lower --kv-rows or --workspace-mib"));
      }
    } else {
      check_cuda(cudaMallocHost(&data, size), "pinned memory for uploads");
    }
    block.data = static_cast<std::byte*>(data);
    blocks_.push_back(block);
  }
  void* out = blocks_[at_.block].data + at_.used;
  at_.used += bytes;
  peak_ = std::max(peak_, at_.before + at_.used);
  return out;
}

std::string cuda_fault() {
  const cudaError_t error = cudaDeviceSynchronize();
  return error == cudaSuccess ? "" : cudaGetErrorString(error);
}

void use_cuda_device(int index) {
  check_cuda(cudaSetDevice(index), "cudaSetDevice");
}

CudaQueue::CudaQueue(int device) {
  use_cuda_device(device);
  check_cuda(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "a stream");
  check_cuda(cudaDeviceGetAttribute(&multiprocessors_, cudaDevAttrMultiProcessorCount, device),
             "the size of the GPU");
  phases_.settle_with([this] { settle(); });
}

CudaQueue::~CudaQueue() {
  graphs_->end();
  cudaStreamSynchronize(stream_);  // memory that kernels use goes next
  cudnn_.reset();                  // its handles know the stream
  cudaStreamDestroy(stream_);
}

CudaQueue::Event::Event() {
  check_cuda(cudaEventCreateWithFlags(&event_, cudaEventDefault), "an event");
}

void CudaQueue::use(const CublasLtApi& api) {
  gemm_ = std::make_unique<Gemm>(api);
}

void CudaQueue::use(const CudnnApi& api) {
  cudnn_ = std::make_unique<CudnnAttention>(api);
}

void CudaQueue::write(std::byte* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  std::byte* const staged = stage(bytes);
  std::memcpy(staged, from, static_cast<size_t>(bytes));
  send(to, staged, bytes);
}

void CudaQueue::send(std::byte* to, const std::byte* staged, int64_t bytes) {
  const auto size = static_cast<size_t>(bytes);
  if (!enqueues(Work::kUpload, to, staged, size)) return;
  check_cuda(cudaMemcpyAsync(to, staged, size, cudaMemcpyHostToDevice, stream_), "an upload");
}

void CudaQueue::read(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  const auto size = static_cast<size_t>(bytes);
  void* staged = stage(bytes);
  filling().fetched.push_back({to, staged, size});
  if (!enqueues(Work::kDownload, staged, from, size)) return;
  check_cuda(cudaMemcpyAsync(staged, from, size, cudaMemcpyDeviceToHost, stream_), "a download");
}

void CudaQueue::copy(std::byte* to, const std::byte* from, int64_t bytes) {
  if (bytes == 0 || !enqueues(Work::kCopy, to, from, bytes)) return;
  check_cuda(
      cudaMemcpyAsync(to, from, static_cast<size_t>(bytes), cudaMemcpyDeviceToDevice, stream_),
      "a copy");
}

void CudaQueue::fill(std::byte* to, std::byte value, int64_t bytes) {
  if (bytes == 0 || !enqueues(Work::kFill, to, value, bytes)) return;
  check_cuda(cudaMemsetAsync(to, std::to_integer<int>(value), static_cast<size_t>(bytes), stream_),
             "a fill");
}

// Ends also where peers are lost, or after a minute: finish() says so to whoever waits there.
// Throws nothing: destructors call it.
void CudaQueue::settle() {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point began = Clock::now();
  Clock::time_point polled = began;
  while (cudaStreamQuery(stream_) == cudaErrorNotReady) {
    const Clock::time_point now = Clock::now();
    if (now - began > std::chrono::minutes(1)) return;
    if (now - began > kPollEvery) std::this_thread::sleep_for(kSleep);
    if (!poll_ || now - polled < kPollEvery) continue;
    try {
      poll_();
    } catch (...) {
      return;
    }
    polled = now;
  }
}

CudaQueue::Step& CudaQueue::filling() {
  if (filling_) return *filling_;
  // By turns, not by what has ended: ranks then capture and replay in the same steps.
  const int64_t turn = (closed_ + 1) % kTurns;
  const auto its = std::find_if(spare_.begin(), spare_.end(),
                                [&](const auto& step) { return step->turn == turn; });
  if (its != spare_.end()) {
    filling_ = std::move(*its);
    spare_.erase(its);
  } else {
    filling_ = std::make_unique<Step>();
    filling_->turn = turn;
  }
  filling_->number = closed_ + 1;
  if (measures_) check_cuda(cudaEventRecord(filling_->begun->get(), stream_), "an event");
  return *filling_;
}

std::byte* CudaQueue::stage(int64_t bytes) {
  Step& step = filling();
  return static_cast<std::byte*>((repeating_ ? step.repeated : step.pinned).allocate(bytes));
}

void CudaQueue::repeat(uint64_t key, const std::function<void()>& body) {
  if (!repeats(key)) return body();
  Step& step = filling();
  const Arena::Position staged = step.repeated.position();
  const size_t fetched = step.fetched.size();
  const auto undo = [&] {  // nothing was enqueued
    mode_ = Mode::kEnqueue;
    step.repeated.rewind(staged);
    step.fetched.resize(fetched);
  };
  const bool is_new = !graphs_->seen(key);
  repeating_ = true;
  try {
    if (is_new) {
      body();
    } else {
      log_.clear();
      mode_ = Mode::kLog;
      body();
      mode_ = Mode::kEnqueue;
      if (!graphs_->launch(key, log_, stream_)) {
        undo();
        graphs_->add(key, log_, capture(body), stream_);
      }
    }
  } catch (...) {
    repeating_ = false;
    if (!is_new) undo();
    throw;
  }
  repeating_ = false;
}

// Relaxed: nothing else is on the stream meanwhile, and events of earlier steps may be asked.
cudaGraph_t CudaQueue::capture(const std::function<void()>& body) {
  cudaGraph_t out = nullptr;
  check_cuda(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeRelaxed), "a capture");
  mode_ = Mode::kCapture;
  try {
    body();
  } catch (...) {
    if (cudaStreamEndCapture(stream_, &out) == cudaSuccess) cudaGraphDestroy(out);
    throw;
  }
  mode_ = Mode::kEnqueue;
  check_cuda(cudaStreamEndCapture(stream_, &out),
             "the capture of a CUDA graph (serve --cuda-graphs off does without)");
  return out;
}

void CudaQueue::retire(Memory memory) {
  if (memory.data() != nullptr) filling().retired.push_back(std::move(memory));
}

CudaQueue::Ticket CudaQueue::close() {
  check_cuda(cudaEventRecord(filling().ended->get(), stream_), "an event");
  open_.push_back(std::move(filling_));
  return {++closed_};
}

bool CudaQueue::ended(Ticket step) {
  for (const auto& open : open_) {
    if (open->number != step.number) continue;
    const cudaError_t error = cudaEventQuery(open->ended->get());
    if (error != cudaErrorNotReady) check_cuda(error, "the GPU");
    return error == cudaSuccess;
  }
  ANNULUS_CHECK(step.number <= closed_, "step ", step.number, " of ", closed_);
  return true;
}

bool CudaQueue::wait(Ticket step, std::chrono::steady_clock::time_point deadline,
                     const std::function<bool()>& woken) {
  using Clock = std::chrono::steady_clock;
  const Clock::time_point began = Clock::now();
  for (Clock::time_point polled = began; !ended(step);) {
    const Clock::time_point now = Clock::now();
    if (now > deadline) {
      throw DeviceError(
          concat("the GPU has not finished by the deadline, in phase ", name(phases_.current())));
    }
    if (now - began < kSpin) continue;
    if (woken && woken()) return false;
    if (poll_ && now - polled > kPollEvery) {
      poll_();
      polled = now;
    }
    std::this_thread::sleep_for(kSleep);
  }
  return true;
}

void CudaQueue::finish(Ticket step, std::chrono::steady_clock::time_point deadline) {
  // Where this throws, nothing is copied to what the caller may have left.
  std::vector<Fetched> fetched;
  for (const auto& open : open_) {
    if (open->number > step.number) break;
    fetched.insert(fetched.end(), open->fetched.begin(), open->fetched.end());
    open->fetched.clear();
  }
  wait(step, deadline);
  if (poll_) poll_();  // a stream also ends where its transfers were aborted
  for (const Fetched& f : fetched) std::memcpy(f.to, f.from, f.bytes);
  while (!open_.empty() && open_.front()->number <= step.number) {
    Step& done = *open_.front();
    if (measures_) note_gap(done);
    done.pinned.rewind({});
    done.repeated.rewind({});
    std::move(done.retired.begin(), done.retired.end(), std::back_inserter(unused_));
    done.retired.clear();
    spare_.push_back(std::move(open_.front()));
    open_.pop_front();
  }
  if ((open_.empty() && !filling_) || unused_.size() > kMostUnused) unused_.clear();
}

void CudaQueue::note_gap(Step& step) {
  if (last_ended_) {
    float ms = 0;
    check_cuda(cudaEventElapsedTime(&ms, last_ended_->get(), step.begun->get()), "a gap");
    gaps_us_ += 1e3 * static_cast<double>(ms);
  } else {
    last_ended_ = std::make_unique<Event>();
  }
  // The step's own is recorded again while the next one is under way.
  std::swap(last_ended_, step.ended);
}

}  // namespace annulus::kernels
