// SPDX-License-Identifier: Apache-2.0
// oneDNN beside our matmul, for bench/gemm.cc only: out[m, n] = x[m, k] w[k, n] with weights packed
// in the layout that oneDNN asks for, x and w both f32 or both bf16, out f32. onednn_matmul gives
// one execution on random data, over copies of the weights in turn (so that small m reads memory),
// or nothing where this build (ANNULUS_HAVE_ONEDNN) or this CPU cannot.
#pragma once

#include <cstdint>
#include <functional>

#if defined(ANNULUS_HAVE_ONEDNN)
#include <omp.h>

#include <dnnl.hpp>
#include <memory>
#include <random>
#include <vector>
#endif

namespace annulus::bench {

#if defined(ANNULUS_HAVE_ONEDNN)

struct OnednnProblem {
  dnnl::engine engine{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream{engine};
  dnnl::matmul matmul;
  dnnl::memory x, out;
  std::vector<dnnl::memory> weights;
  size_t next = 0;
};

inline void fill_onednn(dnnl::memory& memory, bool bf16) {
  std::mt19937 random(7);
  size_t bytes = memory.get_desc().get_size();
  // +-[0.5, 1) in either type.
  if (bf16)
    for (size_t i = 0; i < bytes / 2; ++i)
      static_cast<uint16_t*>(memory.get_data_handle())[i] =
          static_cast<uint16_t>(0x3f00u | (random() & 0x807fu));
  else
    for (size_t i = 0; i < bytes / 4; ++i)
      static_cast<uint32_t*>(memory.get_data_handle())[i] =
          0x3f000000u | (static_cast<uint32_t>(random()) & 0x807fffffu);
}

inline bool have_onednn() {
  return true;
}

inline std::function<void()> onednn_matmul(int threads, bool bf16, int64_t m, int64_t k, int64_t n,
                                           int64_t copies) {
  using Type = dnnl::memory::data_type;
  using Tag = dnnl::memory::format_tag;
  omp_set_num_threads(threads);
  const Type type = bf16 ? Type::bf16 : Type::f32;
  try {
    auto p = std::make_shared<OnednnProblem>();
    dnnl::memory::desc x({m, k}, type, Tag::ab), w({k, n}, type, Tag::any);
    dnnl::memory::desc out({m, n}, Type::f32, Tag::ab);
    dnnl::matmul::primitive_desc description(dnnl::matmul::desc(x, w, out), p->engine);
    p->matmul = dnnl::matmul(description);
    p->x = dnnl::memory(x, p->engine);
    p->out = dnnl::memory(out, p->engine);
    fill_onednn(p->x, bf16);
    for (int64_t i = 0; i < copies; ++i) {
      p->weights.emplace_back(description.weights_desc(), p->engine);
      fill_onednn(p->weights.back(), bf16);
    }
    return [p] {
      p->matmul.execute(p->stream, {{DNNL_ARG_SRC, p->x},
                                    {DNNL_ARG_WEIGHTS, p->weights[p->next++ % p->weights.size()]},
                                    {DNNL_ARG_DST, p->out}});
      p->stream.wait();
    };
  } catch (const dnnl::error&) {
    return {};
  }
}

#else

inline bool have_onednn() {
  return false;
}

inline std::function<void()> onednn_matmul(int, bool, int64_t, int64_t, int64_t, int64_t) {
  return {};
}

#endif

}  // namespace annulus::bench
