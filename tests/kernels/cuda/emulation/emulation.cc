// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "block.h"
#include "cuda.h"
#include "kernels/core/check.h"

namespace cuda_emulation {

void pause_fiber() {
  if (_setjmp(block.current->at) == 0) _longjmp(block.scheduler, 1);
}

namespace {

void run_fiber(Fiber* fiber) {
  block.current = fiber;
  threadIdx = fiber->index;
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber->begun) _longjmp(fiber->at, 1);
  fiber->begun = true;
  setcontext(&fiber->context);
}

// Threads that have ended are not waited for.
void pass_barrier_if_all() {
  if (block.at_barrier == 0 || block.at_barrier + block.ended < block.size) return;
  block.at_barrier = 0;
  ++block.barriers;
  ++block.progress;
}

void fiber_main() {
  Fiber* const self = block.current;
  (*block.thread)();
  ANNULUS_CHECK(self->open.empty() && std::all_of(self->batches.begin(), self->batches.end(),
                                                  [](const auto& batch) { return batch.empty(); }),
                "a thread ends before its copies");
  self->batches.clear();
  end_hopper_thread();
  self->done = true;
  ++block.ended;
  ++block.progress;
  pass_barrier_if_all();
  pause_fiber();
}

// What the threads that wait say, each thing once.
std::string waited_for(const std::vector<Fiber*>& fibers) {
  std::set<std::string> said;
  std::string out;
  for (const Fiber* fiber : fibers) {
    if (fiber->waits_for == nullptr) continue;
    const std::string what = fiber->waits_for(fiber->waits_at);
    if (!said.insert(what).second || said.size() > 8) continue;
    out +=
        annulus::kernels::concat(out.empty() ? "" : "; ", "thread ", fiber->number, " for ", what);
  }
  return out;
}

void run_block(size_t threads) {
  while (block.fibers.size() < threads) block.fibers.push_back(std::make_unique<Fiber>());
  block.size = threads;
  block.at_barrier = block.ended = 0;
  std::memset(launch_memory(), 0xff, block.shared_bytes);
  begin_hopper();
  std::vector<Fiber*> order;
  for (unsigned i = 0; i < threads; ++i) {
    Fiber& fiber = *block.fibers[i];
    fiber.done = fiber.begun = false;
    fiber.warp_waits = 0;
    fiber.waits_for = nullptr;
    fiber.number = i;
    fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / blockDim.x / blockDim.y};
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.get();
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, fiber_main, 0);
    order.push_back(&fiber);
  }
  std::shuffle(order.begin(), order.end(), block.random);
  const size_t warps = (threads + kWarp - 1) / kWarp;
  int64_t idle_rounds = 0;
  size_t late = warps, late_rounds = 0;  // a warp that others run ahead of, for how long
  while (!order.empty()) {
    if (late_rounds == 0) {
      late = block.random() % (2 * warps);  // or none
      late_rounds = block.random() % 8;
    } else {
      --late_rounds;
    }
    const int64_t before = block.progress;
    for (Fiber* fiber : order) {
      if (late_rounds == 0 || fiber->number / kWarp != late) run_fiber(fiber);
    }
    std::erase_if(order, [](const Fiber* fiber) { return fiber->done; });
    const bool idle = block.progress == before;
    if (idle && late_rounds > 0) {  // all wait for the late one, or what is under way
      late_rounds = 0;
      continue;
    }
    if (advance_hopper(idle)) continue;
    idle_rounds = idle ? idle_rounds + 1 : 0;
    ANNULUS_CHECK(idle_rounds < 3, "threads of block ", blockIdx.x, ",", blockIdx.y,
                  " wait for ever: ", waited_for(order));
  }
  end_hopper();
}

}  // namespace

void barrier() {
  const int64_t before = block.barriers;
  ++block.at_barrier;
  pass_barrier_if_all();
  wait_until([&] { return block.barriers != before; },
             [](const void*) { return std::string("__syncthreads"); });
}

namespace {

struct Lanes {
  const void* gave[kWarp];
  size_t lane;  // the caller's
};

void wait_for_warp(size_t first) {
  const int64_t arrived = ++block.current->warp_waits;
  wait_until(
      [first, arrived] {
        for (size_t i = first; i < first + kWarp; ++i) {
          if (block.fibers[i]->warp_waits >= arrived) continue;
          // A thread that left would answer with anything on a GPU.
          ANNULUS_CHECK(!block.fibers[i]->done, "a lane meets one that has ended");
          return false;
        }
        return true;
      },
      [](const void*) { return std::string("its warp"); });
}

// Shows what every lane of the warp gives to use(lanes).
template <class Use>
void with_warp(const void* give, const Use& use) {
  Fiber* const self = block.current;
  const size_t number = self->index.x + blockDim.x * (self->index.y + blockDim.y * self->index.z);
  const size_t first = number / kWarp * kWarp;
  ANNULUS_CHECK(first + kWarp <= block.size, "only whole warps meet");
  self->given = give;
  wait_for_warp(first);
  Lanes lanes;
  lanes.lane = number % kWarp;
  for (size_t i = 0; i < kWarp; ++i) lanes.gave[i] = block.fibers[first + i]->given;
  use(lanes);
  wait_for_warp(first);
}

float half_of(uint32_t pair, size_t which) {  // bf16
  const uint32_t bits = which == 0 ? pair << 16 : pair & 0xffff0000u;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

void load_rows(uint32_t (&out)[4], const void* row, bool transposed) {
  ANNULUS_CHECK(reinterpret_cast<uintptr_t>(row) % 16 == 0, "a row of ldmatrix is not aligned");
  with_warp(row, [&](const Lanes& lanes) {
    const size_t across = lanes.lane / 4, along = lanes.lane % 4 * 2;
    for (size_t i = 0; i < 4; ++i) {
      uint16_t pair[2];
      for (size_t e = 0; e < 2; ++e) {
        const size_t r = transposed ? along + e : across, c = transposed ? across : along + e;
        std::memcpy(&pair[e], static_cast<const char*>(lanes.gave[8 * i + r]) + 2 * c, 2);
      }
      out[i] = pair[0] | uint32_t{pair[1]} << 16;
    }
  });
}

}  // namespace

void exchange(unsigned mask, uint64_t give, int lane_xor, uint64_t* take) {
  ANNULUS_CHECK(mask == 0xffffffffu, "only whole warps shuffle");
  with_warp(&give, [&](const Lanes& lanes) {
    std::memcpy(take, lanes.gave[lanes.lane ^ static_cast<size_t>(lane_xor)], sizeof(*take));
  });
}

void warp_barrier() {
  with_warp(nullptr, [](const Lanes&) {});
}

void load_matrices(uint32_t (&out)[4], const void* row) {
  load_rows(out, row, false);
}
void load_matrices_transposed(uint32_t (&out)[4], const void* row) {
  load_rows(out, row, true);
}

void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  const Operands mine = {{a[0], a[1], a[2], a[3]}, {b0, b1}};
  with_warp(&mine, [&](const Lanes& lanes) {
    for (size_t e = 0; e < 4; ++e) {
      const size_t row = lanes.lane / 4 + e / 2 * 8, column = lanes.lane % 4 * 2 + e % 2;
      float sum = 0;
      for (size_t k = 0; k < 16; ++k) {
        // a[i] holds rows 0-7 (i even) or 8-15, k 0-7 (i < 2) or 8-15; a lane has two k of a row.
        const auto& with_a = *static_cast<const Operands*>(lanes.gave[row % 8 * 4 + k % 8 / 2]);
        const auto& with_b = *static_cast<const Operands*>(lanes.gave[column * 4 + k % 8 / 2]);
        sum += half_of(with_a.a[row / 8 + k / 8 * 2], k % 2) * half_of(with_b.b[k / 8], k % 2);
      }
      c[e] += sum;
    }
  });
}

namespace {
void carry_out(const Copy& copy) {
  if (copy.valid) {
    std::memcpy(copy.shared, copy.global, 16);
  } else {
    std::memset(copy.shared, 0, 16);
  }
  note_written(copy.shared, 16);
}
}  // namespace

void copy_async(void* shared, const void* global, bool valid) {
  ANNULUS_CHECK(reinterpret_cast<uintptr_t>(shared) % 16 == 0 &&
                    (!valid || reinterpret_cast<uintptr_t>(global) % 16 == 0),
                "a copy of 16 bytes is not aligned");
  const Copy copy = {shared, global, valid};
  if (block.random() % 2 == 0) {
    carry_out(copy);
  } else {
    block.current->open.push_back(copy);
  }
}
void commit_copies() {
  Fiber* const self = block.current;
  self->batches.push_back(std::exchange(self->open, {}));
}
void wait_copies(int later) {
  auto& batches = block.current->batches;
  while (batches.size() > static_cast<size_t>(later)) {
    for (const Copy& copy : batches.front()) carry_out(copy);
    batches.pop_front();
  }
}

char* launch_memory() {
  const auto at = reinterpret_cast<uintptr_t>(block.shared.data());
  return block.shared.data() + ((1024 - at % 1024) % 1024);
}

namespace {
std::mutex allowed_mutex;
std::map<const void*, int> allowed;  // of any thread
}  // namespace
void allow_shared(const void* kernel, int bytes) {
  const std::lock_guard lock(allowed_mutex);
  allowed[kernel] = bytes;
}
bool shared_is_allowed(const void* kernel, size_t bytes) {
  if (bytes <= kSharedBytesUnasked) return true;
  const std::lock_guard lock(allowed_mutex);
  const auto found = allowed.find(kernel);
  return found != allowed.end() && bytes <= static_cast<size_t>(found->second);
}

void run_grid(dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()>& thread) {
  ANNULUS_CHECK(grid.x > 0 && grid.y > 0 && grid.z > 0 && grid.y < 65536 && grid.z < 65536,
                "a grid of ", grid.x, " x ", grid.y, " x ", grid.z);
  const size_t threads = size_t{size.x} * size.y * size.z;
  ANNULUS_CHECK(threads > 0 && threads <= 1024, threads, " threads a block");
  block.thread = &thread;
  block.shared.resize(shared_bytes + 1024);
  block.shared_bytes = shared_bytes;
  blockDim = size;
  gridDim = grid;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        blockIdx = {x, y, z};
        run_block(threads);
      }
}

// What was captured, and what it is made of while it is: its stream and those that joined.
struct Graph {
  std::vector<std::function<Waiting(bool)>> work;
  Stream* origin = nullptr;
  struct Joined {
    int64_t work = 0, waited_for = 0;  // pieces; by the origin
  };
  std::map<Stream*, Joined> joined;
};

struct Stream {
  std::deque<Waiting> work;
  int64_t enqueued = 0, run = 0;
  int64_t waited_for = 0;  // by the host
  bool running = false;
  Graph* capture = nullptr;

  // Runs what can run of the first `count`; false where something waits for others.
  bool run_to(int64_t count) {
    if (run >= count) return true;
    if (running) return false;
    running = true;
    while (run < count && work.front()()) {
      work.pop_front();
      ++run;
    }
    running = false;
    return run >= count;
  }
};
thread_local std::vector<Stream*> streams;  // of this thread's GPU
thread_local std::vector<std::unique_ptr<Stream>>
    destroyed;                                           // what they recorded may be waited for
thread_local std::map<const std::byte*, size_t> pinned;  // blocks of cudaMallocHost

thread_local int64_t waits = 0;
void note_wait(Stream& stream, int64_t count) {
  if (stream.waited_for >= count) return;
  stream.waited_for = count;
  ++waits;
}

bool is_pinned(const void* data) {
  const auto* const at = static_cast<const std::byte*>(data);
  auto next = pinned.upper_bound(at);
  if (next == pinned.begin()) return false;
  --next;
  return at < next->first + next->second;
}
int64_t host_waits() {
  return waits;
}
struct Event {
  Stream* stream = nullptr;
  int64_t count = 0;
  bool found_it_idle = false;
  Graph* capture = nullptr;  // that it was recorded in
};

void enqueue_waiting(Stream* stream, std::function<Waiting(bool)> make) {
  ANNULUS_CHECK(stream != nullptr, "work on the default stream");
  if (Graph* const graph = stream->capture; graph != nullptr) {
    graph->work.push_back(std::move(make));
    if (stream != graph->origin) ++graph->joined[stream].work;
    return;
  }
  stream->work.push_back(make(false));
  ++stream->enqueued;
}
void enqueue(Stream* stream, std::function<void()> work) {
  enqueue_waiting(stream, [work = std::move(work)](bool) {
    return [work] {
      work();
      return true;
    };
  });
}
void check_not_captured(const Stream* stream, const char* what) {
  ANNULUS_CHECK(stream->capture == nullptr, what, " of a stream that is captured");
}

}  // namespace cuda_emulation

using cuda_emulation::Event;
using cuda_emulation::Stream;

const char* cudaGetErrorName(cudaError_t error) {
  if (error == cudaErrorInvalidValue) return "cudaErrorInvalidValue";
  return error == cudaSuccess ? "cudaSuccess" : "cudaErrorMemoryAllocation";
}
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorInvalidValue) return "invalid argument";
  return error == cudaSuccess ? "no error" : "out of memory";
}
cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  *properties = cuda_emulation::device;
  return cudaSuccess;
}
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long,
                                             cudaDriverEntryPointQueryResult* result) {
  const bool known = std::strcmp(symbol, "cuTensorMapEncodeTiled") == 0;
  *function = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
  *result = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int) {
  return cudaSuccess;
}
cudaError_t cudaMalloc(void** data, size_t bytes) {
  if (bytes > cuda_emulation::free_bytes) return cudaErrorMemoryAllocation;
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  if (*data == nullptr) return cudaErrorMemoryAllocation;
  std::memset(*data, 0xff, bytes);
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  for (Stream* stream : cuda_emulation::streams) cudaStreamSynchronize(stream);
  return cudaSuccess;
}
// Waits for the device, as the real one does.
cudaError_t cudaFree(void* data) {
  for (Stream* stream : cuda_emulation::streams)
    cuda_emulation::check_not_captured(stream, "cudaFree");
  cudaDeviceSynchronize();
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  const cudaError_t error = cudaMalloc(data, bytes);
  if (error == cudaSuccess) cuda_emulation::pinned[static_cast<std::byte*>(*data)] = bytes;
  return error;
}
cudaError_t cudaFreeHost(void* data) {
  cuda_emulation::pinned.erase(static_cast<std::byte*>(data));
  return cudaFree(data);
}
// To the host and not into pinned memory: the host waits, whatever the stream waits for.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  cuda_emulation::enqueue(stream, [to, from, bytes] {
    if (bytes > 0) std::memcpy(to, from, bytes);
  });
  if (kind != cudaMemcpyDeviceToHost || cuda_emulation::is_pinned(to)) return cudaSuccess;
  return cudaStreamSynchronize(stream);
}
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  cuda_emulation::enqueue(stream, [to, value, bytes] { std::memset(to, value, bytes); });
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  *stream = new Stream;
  cuda_emulation::streams.push_back(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int) {
  return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  std::erase(cuda_emulation::streams, stream);
  cuda_emulation::destroyed.emplace_back(stream);
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  cuda_emulation::check_not_captured(stream, "cudaStreamSynchronize");
  cuda_emulation::note_wait(*stream, stream->enqueued);
  while (!stream->run_to(stream->enqueued)) std::this_thread::yield();
  return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
  cuda_emulation::check_not_captured(stream, "cudaStreamQuery");
  cuda_emulation::note_wait(*stream, stream->enqueued);
  return stream->run_to(stream->enqueued) ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  if (cuda_emulation::Graph* const graph = event->capture; graph != nullptr) {
    ANNULUS_CHECK(event->stream->capture == graph, "a wait for an event of a capture that is over");
    ANNULUS_CHECK(stream->capture == nullptr || stream->capture == graph, "two captures meet");
    if (stream == graph->origin) {
      int64_t& waited_for = graph->joined.at(event->stream).waited_for;
      waited_for = std::max(waited_for, event->count);
    } else {
      stream->capture = graph;
      graph->joined.try_emplace(stream);
    }
    return cudaSuccess;
  }
  ANNULUS_CHECK(stream->capture == nullptr, "a capture waits for what is outside");
  cuda_emulation::enqueue_waiting(stream, [after = *event](bool) {
    return [after] { return after.stream == nullptr || after.stream->run_to(after.count); };
  });
  return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  *event = new Event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  if (cuda_emulation::Graph* const graph = stream->capture; graph != nullptr) {
    *event = {stream, stream == graph->origin ? 0 : graph->joined.at(stream).work, false, graph};
  } else {
    *event = {stream, stream->enqueued, stream->run == stream->enqueued};
  }
  return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  if (event->stream == nullptr) return cudaSuccess;
  ANNULUS_CHECK(event->capture == nullptr, "a question for an event of a capture");
  cuda_emulation::note_wait(*event->stream, event->count);
  return event->stream->run_to(event->count) ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t end) {
  *ms = end->found_it_idle ? 1.0f : 0.0f;
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  delete event;
  return cudaSuccess;
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  cuda_emulation::check_not_captured(stream, "a capture");
  stream->capture = new cuda_emulation::Graph;
  stream->capture->origin = stream;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  *graph = stream->capture;
  ANNULUS_CHECK(*graph != nullptr && (*graph)->origin == stream, "the end of no capture");
  stream->capture = nullptr;
  for (const auto& [joined, its] : (*graph)->joined) {
    joined->capture = nullptr;
    ANNULUS_CHECK(its.waited_for == its.work, "captured work that nothing waits for");
  }
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph,
                                 unsigned long long flags) {
  ANNULUS_CHECK(flags == cudaGraphInstantiateFlagUseNodePriority, "hops lose their priority");
  *out = new cuda_emulation::Graph(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  cuda_emulation::check_not_captured(stream, "a graph's launch");
  for (const auto& make : graph->work) {
    stream->work.push_back(make(true));
    ++stream->enqueued;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph) {
  delete graph;
  return cudaSuccess;
}
