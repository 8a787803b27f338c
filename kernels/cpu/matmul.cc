// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cstring>

#include "kernels/core/math.h"
#include "kernels/cpu/matmul_kernels.h"
#include "kernels/cpu/packed.h"
#include "kernels/cpu/queue.h"
#include "kernels/ops.h"

namespace annulus::kernels {
namespace {

// Inputs per pass over a panel: a piece of it (up to 64 KiB as f32) and the rows it meets stay in
// L2.
constexpr int64_t kChunkK = 512;
// With AMX: a piece as bf16 stays in the first cache beside the rows' tiles.
constexpr int64_t kAmxChunkK = 320;
// Row blocks that share a piece, and the most panels of a task: tasks stay near 100 us.
constexpr int64_t kGroupBlocks = 8, kGroupPanels = 16;
// Bytes of weights of a task when all rows fit into one tile.
constexpr int64_t kStreamBytes = 256 << 10;

MatmulKind packed_kind(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32: return kTileF32;
    case WeightFormat::kQ8_0: return kTileQ8_0;
    case WeightFormat::kQ4_0: return kTileQ4_0;
    case WeightFormat::kQ4_1: return kTileQ4_1;
    default: return kTileBF16;
  }
}

// One matmul: rows in blocks of at most tile_rows (even sizes), outputs in panels.
class Matmul {
 public:
  Matmul(CpuQueue& queue, Tensor out, ConstTensor x, const PackedMatrix& w)
      : queue_(queue),
        kernels_(ANNULUS_SELECT_ISA(queue.isa(), kMatmulKernels)),
        out_(out),
        x_(x),
        w_(w),
        packed_(packed_kind(w.format())),
        dot_(kernels_.bf16_dot && packed_ != kTileF32),
        k_(packed_ == kTileBF16 ? w.k() + w.k() % 2 : w.k()),
        width_(dot_ ? ceil_div(k_, int64_t{kernels_.k_unit}) * kernels_.k_unit : k_),
        panels_(ceil_div(w.n(), PackedMatrix::kPanel)),
        panel_stride_(panel_bytes(w.format(), w.k())) {
    one_pass_ = x.rows <= kernels_.tile_rows[packed_];
    decodes_ = !one_pass_ && kernels_.decode[packed_] != nullptr;
    kind_ = decodes_ ? kernels_.decoded[packed_] : packed_;
    const int64_t most = kernels_.tile_rows[kind_];
    blocks_ = ceil_div(x.rows, most);
    if (kernels_.begin != nullptr && kind_ != kTileF32) {
      full_rows_ = most;
      chunk_ = ceil_div(k_, ceil_div(k_, kAmxChunkK) * kBlockK) * kBlockK;
    }
  }

  void run() {
    pack_rows();
    if (one_pass_)
      stream();
    else
      multiply();
  }

 private:
  using TileFunction = void (*)(const MatmulTile&);
  TileFunction tile(MatmulKind kind, int64_t rows) const { return kernels_.tile[kind][rows - 1]; }

  int64_t first_row(int64_t block) const {
    return full_rows_ > 0 ? std::min(block * full_rows_, x_.rows) : block * x_.rows / blocks_;
  }

  void pack_rows() {
    if (!dot_ && x_.rows == 1 && k_ == x_.cols) {
      packed_x_ = x_.row<const float>(0);
      return;
    }
    int64_t bytes = x_.rows * width_ * (dot_ ? 2 : 4);
    auto* to = queue_.scratch<std::byte>(bytes);
    packed_x_ = to;
    if (dot_ && packed_ == kTileQ4_1) sums_ = queue_.scratch<float>(x_.rows * (k_ / kBlockK));
    auto pack = [&](int64_t block, int) {
      int64_t first = first_row(block);
      int rows = static_cast<int>(first_row(block + 1) - first);
      const float* from = x_.row<const float>(first);
      if (dot_) {
        float* sums = sums_ == nullptr ? nullptr : sums_ + first * (k_ / kBlockK);
        kernels_.pack_bf16(from, x_.row_stride, rows, x_.cols,
                           reinterpret_cast<uint16_t*>(to) + first * width_, sums);
      } else {
        float* block_to = reinterpret_cast<float*>(to) + first * width_;
        kernels_.pack_f32(from, x_.row_stride, rows, x_.cols, block_to);
        std::fill(block_to + x_.cols * rows, block_to + k_ * rows, 0.0f);
      }
    };
    if (blocks_ == 1)
      pack(0, 0);
    else
      queue_.parallel_for(blocks_, pack);
  }

  MatmulTile tile_at(int64_t block, int64_t panel, int64_t k) const {
    int64_t first = first_row(block), rows = first_row(block + 1) - first;
    MatmulTile t;
    const int64_t at = first * width_ + k * rows;
    t.x = static_cast<const std::byte*>(packed_x_) + at * (dot_ ? 2 : 4);
    if (sums_ != nullptr) t.x_sums = sums_ + first * (k_ / kBlockK) + k / kBlockK * rows;
    t.w = w_.data() + panel * panel_stride_ + panel_bytes(w_.format(), k);
    t.panel_stride_bytes = panel_stride_;
    t.panels = 1;
    t.out = out_.row<float>(first) + panel * PackedMatrix::kPanel;
    t.out_stride = out_.row_stride;
    t.n = w_.n() - panel * PackedMatrix::kPanel;
    t.accumulate = k > 0;
    return t;
  }

  // Few rows: every weight is read once, decoded in registers.
  void stream() {
    int64_t share = ceil_div(panels_, int64_t{queue_.threads()} * 4);
    int64_t group =
        std::min(share, std::max(kStreamBytes / std::max(panel_stride_, int64_t{1}), int64_t{2}));
    group += group % 2;
    TileFunction function = tile(kind_, x_.rows);
    queue_.parallel_for(ceil_div(panels_, group), [&](int64_t index, int) {
      MatmulTile t = tile_at(0, index * group, 0);
      t.panels = std::min(group, panels_ - index * group);
      t.k = k_;
      t.streams = true;
      if (full_rows_ > 0) kernels_.begin(static_cast<int>(x_.rows));
      function(t);
      if (full_rows_ > 0) kernels_.end(static_cast<int>(x_.rows));
    });
  }

  void multiply() {
    int64_t block_groups = ceil_div(blocks_, kGroupBlocks);
    int64_t share = panels_ * block_groups / (int64_t{queue_.threads()} * 4);
    int64_t group = std::clamp(share, int64_t{1}, kGroupPanels);
    int64_t panel_groups = ceil_div(panels_, group);
    const int64_t piece = decodes_ ? kChunkK * PackedMatrix::kPanel * 4 : 0;
    auto* pieces = queue_.scratch<std::byte>(piece * queue_.threads());
    queue_.parallel_for(panel_groups * block_groups, [&](int64_t index, int thread) {
      int64_t first_panel = index % panel_groups * group;
      int64_t end_panel = std::min(first_panel + group, panels_);
      int64_t block_group = index / panel_groups;
      int64_t first_block = block_group * blocks_ / block_groups;
      int64_t end_block = (block_group + 1) * blocks_ / block_groups;
      std::byte* decoded = pieces + thread * piece;
      int64_t begun = 0;
      for (int64_t panel = first_panel; panel < end_panel; ++panel)
        for (int64_t k = 0; k < k_; k += chunk_) {
          int64_t count = std::min(chunk_, k_ - k);
          for (int64_t block = first_block; block < end_block; ++block) {
            MatmulTile t = tile_at(block, panel, k);
            t.k = count;
            const int64_t rows = first_row(block + 1) - first_row(block);
            if (full_rows_ > 0 && begun != rows) {
              if (begun > 0) kernels_.end(static_cast<int>(begun));
              kernels_.begin(static_cast<int>(rows));
              begun = rows;
            }
            if (decodes_ && block == first_block) kernels_.decode[packed_](t.w, count, decoded);
            if (decodes_) (kind_ == packed_ ? t.decoded : t.w) = decoded;
            tile(kind_, rows)(t);
          }
        }
      if (begun > 0) kernels_.end(static_cast<int>(begun));
    });
  }

  CpuQueue& queue_;
  const MatmulKernels& kernels_;
  Tensor out_;
  ConstTensor x_;
  const PackedMatrix& w_;
  MatmulKind packed_, kind_ = kTileF32;
  bool dot_, one_pass_ = false, decodes_ = false;
  int64_t k_;                // as packed: even for bf16 weights
  int64_t width_;            // of a packed row of x
  int64_t chunk_ = kChunkK;  // inputs of a pass
  int64_t full_rows_ = 0;    // of all blocks but the last; 0: they are even
  int64_t panels_, panel_stride_, blocks_ = 1;
  const void* packed_x_ = nullptr;
  float* sums_ = nullptr;
};

}  // namespace

template <>
void matmul<CpuQueue>(CpuQueue& queue, Tensor out, ConstTensor x, const PackedMatrix& w) {
  ANNULUS_CHECK(out.dtype == DType::kF32 && x.dtype == DType::kF32, name(out.dtype), name(x.dtype));
  ANNULUS_CHECK(x.cols == w.k() && out.cols == w.n() && out.rows == x.rows, "x ", x.rows, " x ",
                x.cols, ", w ", w.n(), " x ", w.k(), ", out ", out.rows, " x ", out.cols);
  if (x.rows == 0 || w.n() == 0) return;
  ANNULUS_CHECK(w.k() > 0, w.n(), " x 0 weights");
  CpuQueue::Mark mark(queue);
  Matmul(queue, out, x, w).run();
}

}  // namespace annulus::kernels
