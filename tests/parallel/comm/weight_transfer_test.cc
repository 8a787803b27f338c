// SPDX-License-Identifier: Apache-2.0
// Weights that go from rank to rank, over every backend: the receivers hold the sender's bits.
#include "parallel/weight_transfer.h"

#include <gtest/gtest.h>

#include <atomic>
#include <mutex>

#include "kernels/core/check.h"
#include "parallel/model/weights_inl.h"
#include "tests/parallel/comm/worlds.h"
#include "tests/support/tiny_model.h"

namespace annulus::parallel {
namespace {

using annulus::testing::TinyModel;
using kernels::DeviceError;
using kernels::Precision;
using kernels::WeightFormat;
using Weights = LlamaWeights<CpuQueue>;

std::unique_ptr<CpuQueue> loader() {
  return std::make_unique<CpuQueue>(1);
}

Checkpoint model_of(const TinyModel& model) {
  const std::string folder = annulus::testing::scratch_directory();
  if (model.matrices == WeightFormat::kF8E4M3) {
    annulus::testing::write_folder(model, folder);
    return Checkpoint::open(folder).value();
  }
  annulus::testing::write_gguf(model, folder + "/tiny.gguf");
  return Checkpoint::open(folder + "/tiny.gguf").value();
}

// Matrices of several pieces and of parts of one.
TinyModel several_pieces() {
  TinyModel model;
  model.dim = 512;
  model.heads = 8;
  model.kv_heads = 4;
  model.head_dim = 64;
  model.ffn = 3072;
  model.vocab = 576;
  model.tied = false;
  return model;
}

// Everything that forward() reads.
void expect_same(const Weights& got, const Weights& want) {
  EXPECT_EQ(norms_of(got), norms_of(want));
  const auto a = matrices_of(got), b = matrices_of(want);
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) {
    ASSERT_EQ(a[i].size(), b[i].size()) << "matrix " << i;
    EXPECT_TRUE(std::equal(a[i].begin(), a[i].end(), b[i].begin())) << "matrix " << i;
  }
  ASSERT_EQ(got.embedding.rows, want.embedding.rows);
  const auto cols = static_cast<size_t>(want.embedding.cols);
  std::vector<float> x(cols), y(cols);
  for (int64_t row = 0; row < want.embedding.rows; ++row) {
    dequantise_row(got.embedding, row, x.data());
    dequantise_row(want.embedding, row, y.data());
    ASSERT_EQ(x, y) << "row " << row << " of the embedding";
  }
}

Weights weights_of(const Checkpoint& checkpoint, int32_t tp_rank, int32_t tp, Precision precision) {
  CpuQueue queue(1);
  return load_weights(queue, checkpoint, tp_rank, tp, precision).value();
}

class WeightTransfer : public ::testing::TestWithParam<Backend> {
 protected:
  // CP ranks get their weights as the routes say: rank `source` reads, or holds where `held`.
  void check(const Checkpoint& checkpoint, Topology topology, Precision precision,
             const std::vector<int32_t>& chain, bool held, bool without_files) {
    const Checkpoint outline = Checkpoint::from_outline(checkpoint.outline()).value();
    std::vector<Weights> read;  // by TP rank
    for (int32_t tp_rank = 0; tp_rank < topology.tp; ++tp_rank) {
      read.push_back(weights_of(checkpoint, tp_rank, topology.tp, precision));
    }
    on_ranks(GetParam(), topology, [&](int32_t me, Groups<CpuQueue> groups, CpuQueue& queue) {
      const int32_t tp_rank = topology.tp_rank(me), cp_rank = topology.cp_rank(me);
      const auto at = std::find(chain.begin(), chain.end(), cp_rank);
      const WeightRoute route = {.from = at == chain.begin() ? -1 : *(at - 1),
                                 .to = at + 1 == chain.end() ? -1 : *(at + 1),
                                 .table = without_files};
      int64_t done = 0, total = 0;
      const bool receives = route.from >= 0;
      const WeightWish wish{receives && without_files ? outline : checkpoint,
                            tp_rank,
                            topology.tp,
                            precision,
                            route,
                            [&](int64_t so_far, int64_t all) {
                              EXPECT_GE(so_far, done);
                              done = so_far;
                              total = all;
                            }};
      Weights weights;
      if (receives) {
        ASSERT_TRUE(receive_weights(queue, *groups.cp, wish, weights).ok());
      } else if (held) {
        weights = weights_of(checkpoint, tp_rank, topology.tp, precision);
        send_weights(queue, *groups.cp, wish, weights);
      } else {
        ASSERT_TRUE(read_weights<CpuQueue>(queue, loader, *groups.cp, wish, weights).ok());
      }
      if (receives || !held) {
        EXPECT_EQ(done, total);
        EXPECT_GT(total, 0);
      }
      const uint64_t digest = digest_of(queue, weights);
      ASSERT_TRUE(compare_weights(queue, *groups.world, topology, digest).ok());
      const Weights& want = read[static_cast<size_t>(tp_rank)];
      EXPECT_EQ(digest, digest_of(queue, want));
      EXPECT_TRUE(weights.whole);
      expect_same(weights, want);
      if (!receives || !without_files) {
        EXPECT_EQ(weights.bytes, want.bytes);
      }
    });
  }
};

TEST_P(WeightTransfer, ReceiversHoldTheSendersBits) {
  const Checkpoint checkpoint = model_of(several_pieces());
  for (const bool held : {false, true}) {
    for (const bool without_files : {false, true}) {
      check(checkpoint, {1, 2}, Precision::kDefault, {0, 1}, held, without_files);
      check(checkpoint, {1, 4}, Precision::kDefault, {2, 0, 3, 1}, held, without_files);
      check(checkpoint, {2, 3}, Precision::kF32, {0, 2, 1}, held, without_files);
    }
  }
}

TEST_P(WeightTransfer, InEveryFormat) {
  for (const WeightFormat format :
       {WeightFormat::kF32, WeightFormat::kF16, WeightFormat::kBF16, WeightFormat::kQ8_0,
        WeightFormat::kQ4_0, WeightFormat::kQ4_1, WeightFormat::kQ6_K, WeightFormat::kF8E4M3}) {
    for (const bool tied : {false, true}) {
      TinyModel model;
      model.dim = 256;
      model.heads = 4;
      model.kv_heads = 2;
      model.head_dim = 64;
      model.ffn = 512;
      model.tied = tied;
      model.matrices = model.embedding = format;
      check(model_of(model), {2, 2}, Precision::kDefault, {0, 1}, false, true);
    }
  }
}

TEST_P(WeightTransfer, OtherWeightsAreToldApartByEveryRankOfTheSlice) {
  TinyModel model;
  const Checkpoint one = model_of(model);
  model.seed = 2;
  const Checkpoint other = model_of(model);
  const Topology topology{1, 3};
  on_ranks(GetParam(), topology, [&](int32_t me, Groups<CpuQueue> groups, CpuQueue& queue) {
    const Weights weights = weights_of(me == 2 ? other : one, 0, 1, Precision::kDefault);
    const uint64_t digest = digest_of(queue, weights);
    const absl::Status status = compare_weights(queue, *groups.world, topology, digest);
    EXPECT_EQ(status.message(),
              "ranks 0 and 2 hold different weights of the same slice: give both the same model "
              "file");
  });
}

// The reader has all of it in the end, and says that the receiver was lost.
TEST_P(WeightTransfer, AReaderThatLosesItsReceiverKeepsWhatItReads) {
  const Checkpoint checkpoint = model_of(several_pieces());
  Weights weights;  // outlives the world
  on_ranks(GetParam(), {1, 2}, [&](int32_t me, Groups<CpuQueue> groups, CpuQueue& queue) {
    if (me == 1) return;  // receives nothing
    const auto lose = [&](int64_t, int64_t) { groups.cp->abort("rank 1 was lost"); };
    const WeightWish wish{checkpoint, 0, 1, Precision::kDefault, {.to = 1}, lose};
    try {
      (void)read_weights<CpuQueue>(queue, loader, *groups.cp, wish, weights);
      ADD_FAILURE() << "no DeviceError";
    } catch (const DeviceError& error) {
      EXPECT_NE(std::string(error.what()).find("rank 1 was lost"), std::string::npos)
          << error.what();
    }
    EXPECT_TRUE(weights.whole);
    expect_same(weights, load_weights(queue, checkpoint, 0, 1, Precision::kDefault).value());
  });
}

TEST_P(WeightTransfer, AReceiverWhoseSenderIsLostEnds) {
  const Checkpoint checkpoint = model_of(several_pieces());
  Weights weights;  // outlives the world
  on_ranks(GetParam(), {1, 2}, [&](int32_t me, Groups<CpuQueue> groups, CpuQueue& queue) {
    if (me == 0) return;  // sends nothing
    const WeightWish wish{checkpoint, 0, 1, Precision::kDefault, {.from = 0}, {}};
    std::jthread control([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
      groups.cp->abort("rank 0 was lost");
    });
    EXPECT_THROW((void)receive_weights(queue, *groups.cp, wish, weights), DeviceError);
  });
}

INSTANTIATE_TEST_SUITE_P(Backends, WeightTransfer,
                         ::testing::Values(Backend::kThreads, Backend::kUcxShared,
                                           Backend::kUcxTcp),
                         backend_name);

TEST(Digest, DependsOnEveryByteAndItsPlace) {
  std::vector<std::byte> bytes(101);
  const uint64_t zeros = digest_bytes(bytes, 0);
  std::vector<uint64_t> seen = {zeros, digest_bytes(bytes, 1)};
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = std::byte{0x80};
    seen.push_back(digest_bytes(bytes, 0));
    bytes[i] = std::byte{0};
  }
  bytes.push_back(std::byte{0});
  seen.push_back(digest_bytes(bytes, 0));
  std::sort(seen.begin(), seen.end());
  EXPECT_EQ(std::adjacent_find(seen.begin(), seen.end()), seen.end());
}

}  // namespace
}  // namespace annulus::parallel
