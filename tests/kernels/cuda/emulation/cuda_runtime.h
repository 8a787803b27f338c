// SPDX-License-Identifier: Apache-2.0
// As much of the CUDA runtime as kernels/cuda uses, on a CPU: with this folder in front of the
// toolkit's, the same .cu files compile as C++ and their kernels run, so that index arithmetic,
// barriers, shuffles, matrix fragments, lifetimes and the order of work are proven on machines
// without a GPU. Not emulated: inline PTX, timing, a warp's lock step (threads run freely between
// barriers, in an order that changes from launch to launch; now and then a warp comes late).
//
// A block's threads are fibers of the calling thread; blocks run one after the other. A stream is a
// list of closures that runs when it is waited for, not before: memory that the host gives back or
// overwrites too early is seen. Device memory is an allocation of its own, filled with NaN. Every
// thread of the host is a GPU of its own, so that ranks can be threads.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __shared__ static thread_local  // one block at a time
#define __restrict__

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

struct CUtensorMap_st;

namespace cuda_emulation {

void barrier();                                                             // of the block
void exchange(unsigned mask, uint64_t give, int lane_xor, uint64_t* take);  // of the warp

struct Stream;
struct Event;
struct Graph;
void enqueue(Stream* stream, std::function<void()> work);
// Work that waits for other ranks: false means "not yet", and it is called again. It is made anew
// whenever it is launched: now, or with every launch of the graph that is being captured.
using Waiting = std::function<bool()>;
void enqueue_waiting(Stream* stream, std::function<Waiting(bool captured)> make);
inline thread_local int64_t launches = 0;  // of kernels by this thread, empty ones aside
// How often this thread has waited for its GPU, or asked whether it has finished, with work that it
// had not waited for before.
int64_t host_waits();
// What cudaMemGetInfo says of this thread's GPU; allocations take nothing of it, but none is
// larger.
inline thread_local size_t free_bytes = size_t{1} << 32;
void run_grid(dim3 grid, dim3 block, size_t shared_bytes, const std::function<void()>& thread);

// kernels/cuda/tensor_core.cuh: of the warp, by the layouts of the PTX manual. Copies happen at
// once or when they are waited for, at random.
void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
void load_matrices(uint32_t (&out)[4], const void* row);
void load_matrices_transposed(uint32_t (&out)[4], const void* row);
void copy_async(void* shared, const void* global, bool valid);
void commit_copies();
void wait_copies(int later);
char* launch_memory();  // of the block, full of NaN at its start

// kernels/cuda/hopper.cuh, by the PTX manual. What is asynchronous happens at some moment between
// its begin and the wait for it, at random. Until then the destination is full of NaN; wgmma reads
// its operands, registers or memory, at that moment. What the generic proxy wrote without a fence
// is NaN to wgmma. Misuse ends the process with a sentence that says what.
uint32_t shared_address(const void* shared);
void mbarrier_init(uint64_t* barrier, uint32_t count);
void mbarrier_arrive(uint64_t* barrier);
void mbarrier_arrive_expect_tx(uint64_t* barrier, uint32_t bytes);
void mbarrier_wait(uint64_t* barrier, uint32_t parity);
void named_barrier_sync(int id, int threads);
void named_barrier_arrive(int id, int threads);
void warp_barrier();
void set_registers(int registers);  // of the thread: gives, or waits for those of others
void fence_proxy_async();
void fence_tensor_map(const CUtensorMap_st* map);
void tma_load(void* shared, const CUtensorMap_st* map, int32_t column, int32_t row,
              uint64_t* barrier);
struct Product {  // d[64, n] (+)= a[64, 16] b[16, n], of a warpgroup
  float* d;
  int n;
  const uint32_t* a;  // 4 registers, or null: in shared memory
  uint64_t a_matrix, b_matrix;
  bool b_is_mn_major;  // else both are K-major
  bool accumulate;
};
void wgmma(const Product& product);
void wgmma_fence();
void wgmma_commit();
void wgmma_wait(int later);

constexpr size_t kSharedBytes = 227 << 10, kSharedBytesUnasked = 48 << 10;
void allow_shared(const void* kernel, int bytes);
bool shared_is_allowed(const void* kernel, size_t bytes);

}  // namespace cuda_emulation

// Of the thread that runs.
inline thread_local dim3 threadIdx, blockIdx, blockDim, gridDim;

struct float2 {
  float x, y;
};
inline int min(int a, int b) {
  return a < b ? a : b;
}
inline int max(int a, int b) {
  return a > b ? a : b;
}

inline void __syncthreads() {
  cuda_emulation::barrier();
}
inline void __syncwarp() {
  cuda_emulation::warp_barrier();
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_xor) {
  static_assert(sizeof(T) <= 8);
  uint64_t give = 0, take = 0;
  std::memcpy(&give, &value, sizeof(T));
  cuda_emulation::exchange(mask, give, lane_xor, &take);
  std::memcpy(&value, &take, sizeof(T));
  return value;
}

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorNotReady = 600
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
using cudaStream_t = cuda_emulation::Stream*;
using cudaEvent_t = cuda_emulation::Event*;
using cudaGraph_t = cuda_emulation::Graph*;
using cudaGraphExec_t = cuda_emulation::Graph*;
enum cudaStreamCaptureMode { cudaStreamCaptureModeRelaxed = 2 };
constexpr unsigned long long cudaGraphInstantiateFlagUseNodePriority = 8;
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventDisableTiming = 2;

struct cudaDeviceProp {
  char name[256] = "emulated";
  int major = 9, minor = 0;
};
namespace cuda_emulation {
inline thread_local cudaDeviceProp device;  // what this thread's GPU says of itself
}
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaSetDevice(int device);
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 4;
  return cudaSuccess;
}
enum cudaDriverEntryPointQueryResult {
  cudaDriverEntryPointSuccess = 0,
  cudaDriverEntryPointSymbolNotFound = 1
};
constexpr unsigned long long cudaEnableDefault = 0;
cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned version,
                                             unsigned long long flags,
                                             cudaDriverEntryPointQueryResult* result);
cudaError_t cudaMalloc(void** data, size_t bytes);
cudaError_t cudaFree(void* data);
inline cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = *total = cuda_emulation::free_bytes;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceReset() {
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 0;
  return cudaSuccess;
}
cudaError_t cudaMallocHost(void** data, size_t bytes);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream);
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int priority);
cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaDeviceSynchronize();
cudaError_t cudaStreamQuery(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventQuery(cudaEvent_t event);
// No timing: 1 ms where a stream had nothing left to do when `end` was recorded, else none.
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t begin, cudaEvent_t end);
cudaError_t cudaEventDestroy(cudaEvent_t event);
// A graph's work runs in the order of capture. While one is captured, nothing may be waited for
// that is part of it, and memory may not be freed.
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* out, cudaGraph_t graph, unsigned long long flags);
cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t graph);

// The arguments are copied at the call, as a launch copies them.
template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  const size_t shared = config->dynamicSmemBytes;
  if (!cuda_emulation::shared_is_allowed(reinterpret_cast<const void*>(kernel), shared)) {
    return cudaErrorInvalidValue;
  }
  ++cuda_emulation::launches;
  std::tuple<std::remove_cv_t<Parameters>...> copies(std::forward<Arguments>(arguments)...);
  cuda_emulation::enqueue(
      config->stream, [kernel, copies, shared, grid = config->gridDim, block = config->blockDim] {
        cuda_emulation::run_grid(grid, block, shared, [&] { std::apply(kernel, copies); });
      });
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int value) {
  if (value > static_cast<int>(cuda_emulation::kSharedBytes)) return cudaErrorInvalidValue;
  cuda_emulation::allow_shared(reinterpret_cast<const void*>(kernel), value);
  return cudaSuccess;
}
template <class... Parameters>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, void (*)(Parameters...), int,
                                                          size_t shared_bytes) {
  *blocks = static_cast<int>(cuda_emulation::kSharedBytes / (shared_bytes + 1024));
  return cudaSuccess;
}
