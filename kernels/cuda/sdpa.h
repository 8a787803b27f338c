// SPDX-License-Identifier: Apache-2.0
// Sdpa: attention of one shape by cuDNN: behind CudnnAttention (cudnn_attention.h), and by itself
// the yardstick of our own kernels. Keys lie one after the other; cuDNN 9.19 knows neither page
// tables nor positions. A plan belongs to one shape and is compiled when it is made, in 0.25 to
// 0.4 s. Used from the thread of its queue. Errors: DeviceError with cuDNN's own words, also where
// it has no engine for a shape, or can compile none of those that it names.
#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <string_view>

#include "kernels/core/dtype.h"
#include "kernels/cuda/cudnn_api.h"
#include "kernels/cuda/queue.h"

namespace annulus::kernels {

enum class SdpaMask : uint8_t {
  kNone,       // every query sees every key
  kCausal,     // query r sees keys up to number keys - queries + r
  kFirstRows,  // query r sees key k where r >= first_rows[k], numbers on the device
};

struct SdpaShape {
  int32_t heads = 0, kv_heads = 0, head_dim = 0;
  int64_t queries = 0, keys = 0;
  SdpaMask mask = SdpaMask::kCausal;
  DType output = DType::kBF16;                         // of o
  auto operator<=>(const SdpaShape&) const = default;  // NOLINT(modernize-use-nullptr): <=> 0
};

class Sdpa {
 public:
  // On the GPU of this thread; api outlives it.
  Sdpa(const CudnnApi& api, const SdpaShape& shape);
  ~Sdpa();
  Sdpa(const Sdpa&) = delete;
  Sdpa& operator=(const Sdpa&) = delete;

  // o [queries, heads * head_dim] of the shape's type and lse [queries, heads], f32, = attention of
  // q, bf16, over rows of keys and values as the cache has them: [keys, 2 * kv_heads * head_dim],
  // bf16. first_rows [keys]: of SdpaMask::kFirstRows; o and lse of a query that sees nothing are
  // then anything. All on the device. Enqueues.
  void attend(CudaQueue& queue, const void* q, const void* kv, float scale, void* o, float* lse,
              const int32_t* first_rows = nullptr);

 private:
  const CudnnApi& api_;
  SdpaShape shape_;
  struct Plan;
  std::unique_ptr<Plan> plan_;
};

// What cuDNN can do for a shape on a GPU that is not here but described, in JSON by the names of
// cuDNN's own serialised properties of a device. Needs a libcuda.so.1, of whatever kind.
struct SdpaSupport {
  int64_t engines = 0;  // that know the graph on such a GPU
  // The first of them was compiled: its kernel came as far as the driver, which refused it, as one
  // without a GPU does, or took it.
  bool compiled = false;
};
SdpaSupport sdpa_support(const CudnnApi& api, const SdpaShape& shape, std::string_view device,
                         bool compile);

}  // namespace annulus::kernels
