// SPDX-License-Identifier: Apache-2.0
// Checkpoint::outline() and from_outline(): some hundred bytes of config, then format and bound of
// each matrix. Shapes follow from the config. Between processes of one build only.
#include <array>
#include <utility>

#include "parallel/model/bytes.h"
#include "parallel/model/checkpoint.h"

namespace annulus::parallel {
namespace {

using kernels::WeightFormat;
using kernels::WeightSource;

constexpr uint32_t kMagic = 0x4c4f5841;  // "AXOL"

constexpr std::array kSizes = {&LlamaConfig::layers,   &LlamaConfig::dim,      &LlamaConfig::heads,
                               &LlamaConfig::kv_heads, &LlamaConfig::head_dim, &LlamaConfig::ffn,
                               &LlamaConfig::vocab};
constexpr std::array kScalingNumbers = {&RopeScaling::factor, &RopeScaling::low_freq_factor,
                                        &RopeScaling::high_freq_factor};
constexpr std::array kMatrices = {&LayerTensors::q,   &LayerTensors::k,    &LayerTensors::v,
                                  &LayerTensors::o,   &LayerTensors::gate, &LayerTensors::up,
                                  &LayerTensors::down};

// Rows and columns of kMatrices.
std::array<std::pair<int64_t, int64_t>, kMatrices.size()> shapes_of(const LlamaConfig& c) {
  const int64_t dim = c.dim, ffn = c.ffn;
  const int64_t q = int64_t{c.heads} * c.head_dim, kv = int64_t{c.kv_heads} * c.head_dim;
  return {{{q, dim}, {kv, dim}, {kv, dim}, {dim, q}, {ffn, dim}, {ffn, dim}, {dim, ffn}}};
}

WeightSource shape_only(WeightFormat format, int64_t rows, int64_t cols) {
  const kernels::WeightBlock block = kernels::block_of(format);
  WeightSource shape;
  shape.format = format;
  shape.rows = rows;
  shape.cols = cols;
  shape.row_stride_bytes = cols / block.weights * block.bytes;
  return shape;
}

void put_matrix(ByteWriter& out, const WeightSource& matrix) {
  out.put(matrix.format);
  out.put(matrix.input_bound);
}

}  // namespace

std::string Checkpoint::outline() const {
  ByteWriter out;
  out.put(kMagic);
  out.put(fingerprint_);
  for (const auto size : kSizes) out.put(config_.*size);
  out.put(config_.trained_context);
  out.put(config_.context);
  out.put(config_.rms_eps);
  out.put(config_.rope_theta);
  out.put(config_.rope_scaling.kind);
  for (const auto number : kScalingNumbers) out.put(config_.rope_scaling.*number);
  out.put(config_.rope_scaling.original_context);
  out.put_count(config_.rope_divisors.size());
  for (const float divisor : config_.rope_divisors) out.put(divisor);
  out.put(config_.pairing);
  out.put(uint8_t{config_.tied_head});
  out.put_count(config_.name.size());
  for (const char c : config_.name) out.put(c);
  put_matrix(out, tensors_.embedding);
  put_matrix(out, tensors_.head);
  for (const LayerTensors& layer : tensors_.layers) {
    for (const auto matrix : kMatrices) put_matrix(out, layer.*matrix);
  }
  return out.take();
}

absl::StatusOr<Checkpoint> Checkpoint::from_outline(std::string_view outline) {
  ByteReader in(outline, "outline of the model");
  Checkpoint out;
  LlamaConfig& c = out.config_;
  if (in.get<uint32_t>("magic") != kMagic) in.fail("magic", "is that of something else");
  out.fingerprint_ = in.get<uint64_t>("fingerprint");
  for (const auto size : kSizes) {
    c.*size = in.get<int32_t>("a size");
    if (c.*size < 1) in.fail("a size", "is not positive");
  }
  c.trained_context = in.get<int64_t>("trained context");
  c.context = in.get<int64_t>("context");
  if (c.context < 1) in.fail("context", "is not positive");
  c.rms_eps = in.get<double>("rms_eps");
  c.rope_theta = in.get<double>("rope_theta");
  c.rope_scaling.kind = in.get_enum("scaling", RopeScaling::Kind::kLlama3);
  for (const auto number : kScalingNumbers) c.rope_scaling.*number = in.get<double>("scaling");
  c.rope_scaling.original_context = in.get<int64_t>("original context");
  c.rope_divisors.resize(in.get_count("divisors", sizeof(float)));
  for (float& divisor : c.rope_divisors) divisor = in.get<float>("divisors");
  if (!c.rope_divisors.empty() && static_cast<int64_t>(c.rope_divisors.size()) != c.head_dim / 2) {
    in.fail("divisors", "are not one for each frequency");
  }
  c.pairing = in.get_enum("pairing", kernels::RopePairing::kHalves);
  c.tied_head = in.get_flag("tied head");
  c.name.resize(in.get_count("name", 1));
  for (char& letter : c.name) letter = in.get<char>("name");
  if (in.ok()) {
    if (absl::Status status = check_config(c, "outline of the model"); !status.ok()) return status;
  }

  const auto matrix = [&](int64_t rows, int64_t cols) {
    const auto format = in.get_enum("format", WeightFormat::kF8E4M3);
    if (cols % kernels::block_of(format).weights != 0) in.fail("format", "does not divide a row");
    WeightSource shape = shape_only(format, rows, cols);
    shape.input_bound = in.get<float>("input bound");
    if (!(shape.input_bound > 0)) in.fail("input bound", "is not positive");
    return shape;
  };
  out.tensors_.embedding = matrix(c.vocab, c.dim);
  out.tensors_.head = matrix(c.vocab, c.dim);
  for (int32_t i = 0; i < c.layers && in.ok(); ++i) {
    LayerTensors& layer = out.tensors_.layers.emplace_back();
    const auto shapes = shapes_of(c);
    for (size_t m = 0; m < kMatrices.size(); ++m) {
      layer.*kMatrices[m] = matrix(shapes[m].first, shapes[m].second);
    }
  }
  if (absl::Status status = in.finish(); !status.ok()) return status;
  return out;
}

}  // namespace annulus::parallel
