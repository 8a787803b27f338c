// SPDX-License-Identifier: Apache-2.0
#include "bench/recall_model.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <span>

#include "absl/strings/str_cat.h"
#include "kernels/core/dtype.h"
#include "server/tokenizer/byte_alphabet.h"

namespace annulus::bench {
namespace {

using nlohmann::json;

constexpr int32_t kBits = RecallModel::kBits;
// Features of a token's embedding, each +-1 or 0 but for the padding. The squares of every row add
// up to kDim, so that RMSNorm divides by exactly 1 (epsilon vanishes in fp32).
constexpr int32_t kDim = 64;
constexpr int32_t kKeyCode = 0, kQueryCode = kBits;  // kBits each
constexpr int32_t kIsNeedle = 2 * kBits, kIsQuery = kIsNeedle + 1, kIsFiller = kIsNeedle + 2;
constexpr int32_t kPadding = kIsNeedle + 4;  // 4: any integer is a sum of four squares
constexpr int32_t kOut = 40;                 // where the head's output goes: bits, fillers' share
constexpr int32_t kFfn = 32;

constexpr double kBitScore = 5;  // nats that one right bit adds and a wrong one takes
constexpr double kMatch = 7;     // nats of a needle that is asked for: small, so that lse is exact
constexpr double kKeyBit = 4;    // a key's bit; the query's follows from kBitScore
constexpr double kNeedleKey = 16;  // takes kBits * kBitScore - kMatch from every needle
constexpr double kPositionKey = 2;
constexpr double kAnswer = 8;         // logit of an answer per bit and unit of probability
constexpr double kNothingLogit = 24;  // of kNothing, per unit of the fillers' probability
constexpr double kTheta = 1e300;

double bf16(double x) {
  return static_cast<double>(kernels::to_float(kernels::to_bf16(static_cast<float>(x))));
}

double sign(int32_t code, int32_t bit) {
  return (code >> bit & 1) != 0 ? 1 : -1;
}

// What the weights are, as bf16 has them; expected() uses these and no other numbers.
struct Constants {
  double query_bit, query_kind, filler_key, position_query, share, scale;
};

Constants constants_of(const RecallModel& m) {
  const double root = std::sqrt(static_cast<double>(m.head_dim));
  const double query_kind = bf16((kBits * kBitScore - kMatch) * root / kNeedleKey);
  const double filler = kMatch - std::log(static_cast<double>(m.tokens));
  return {bf16(kBitScore * root / kKeyBit),
          query_kind,
          bf16(filler * root / query_kind),
          bf16(root / kPositionKey),
          bf16(1.0 / m.tp),
          static_cast<double>(1 / std::sqrt(static_cast<float>(m.head_dim)))};
}

// Dimensions of a head: pair 0 is (0, head_dim / 2) and carries the position; of the rest, codes
// take the first kBits, and what tells needles from fillers the next.
std::vector<int32_t> still_dims(const RecallModel& m) {
  std::vector<int32_t> dims;
  for (int32_t d = 1; d < m.head_dim; ++d) {
    if (d != m.head_dim / 2) dims.push_back(d);
  }
  return dims;
}

struct Matrix {
  std::string name;
  int64_t rows, cols;
  std::vector<float> values;

  Matrix(std::string n, int64_t r, int64_t c)
      : name(std::move(n)), rows(r), cols(c), values(static_cast<size_t>(r * c), 0.0f) {}
  float& at(int64_t r, int64_t c) { return values[static_cast<size_t>(r * cols + c)]; }
  void set(int64_t r, int64_t c, double x) { at(r, c) = static_cast<float>(x); }
};

// Four integers whose squares add up to n.
std::array<int32_t, 4> four_squares(int32_t n) {
  std::array<int32_t, 4> parts{};
  const std::function<bool(size_t, int32_t)> fill = [&](size_t at, int32_t left) {
    if (at == parts.size()) return left == 0;
    for (parts[at] = static_cast<int32_t>(std::sqrt(left)); parts[at] >= 0; --parts[at]) {
      if (fill(at + 1, left - parts[at] * parts[at])) return true;
    }
    return false;
  };
  fill(0, n);
  return parts;
}

void pad(Matrix& embedding, int64_t row) {
  double squares = 0;
  for (int32_t d = 0; d < kDim; ++d) squares += std::pow(embedding.at(row, d), 2);
  const std::array<int32_t, 4> parts = four_squares(kDim - static_cast<int32_t>(squares));
  for (size_t i = 0; i < parts.size(); ++i) {
    embedding.set(row, kPadding + static_cast<int32_t>(i), parts[i]);
  }
}

Matrix embedding_of(const RecallModel& m) {
  Matrix e("model.embed_tokens.weight", m.vocab(), kDim);
  const auto code = [&](int64_t row, int32_t at, int32_t value) {
    for (int32_t b = 0; b < kBits; ++b) e.set(row, at + b, sign(value, b));
  };
  for (int32_t id = 0; id < m.vocab(); ++id) e.set(id, kIsFiller, 1);
  for (int32_t i = 0; i < m.needles; ++i) {
    e.set(m.needle_id(i), kIsFiller, 0);
    e.set(m.needle_id(i), kIsNeedle, 1);
    code(m.needle_id(i), kKeyCode, i);
    code(m.needle_id(i), kQueryCode, m.own_query(i));
    e.set(m.needle_id(i), kIsQuery, 1);
    code(m.ask_id(i), kQueryCode, i);
    e.set(m.ask_id(i), kIsQuery, 1);
  }
  for (int32_t id = 0; id < m.vocab(); ++id) pad(e, id);
  return e;
}

std::vector<Matrix> tensors_of(const RecallModel& m) {
  const int64_t width = int64_t{m.tp} * m.head_dim;
  const Constants c = constants_of(m);
  const std::vector<int32_t> still = still_dims(m);
  const std::string layer = "model.layers.0.";
  Matrix q(layer + "self_attn.q_proj.weight", width, kDim);
  Matrix k(layer + "self_attn.k_proj.weight", width, kDim);
  Matrix v(layer + "self_attn.v_proj.weight", width, kDim);
  Matrix o(layer + "self_attn.o_proj.weight", kDim, width);
  for (int64_t h = 0; h < width; h += m.head_dim) {
    q.set(h, kIsQuery, c.position_query);
    k.set(h, kIsNeedle, kPositionKey);
    for (int32_t b = 0; b < kBits; ++b) {
      q.set(h + still[static_cast<size_t>(b)], kQueryCode + b, c.query_bit);
      k.set(h + still[static_cast<size_t>(b)], kKeyCode + b, kKeyBit);
      v.set(h + b, kKeyCode + b, 1);
    }
    q.set(h + still[kBits], kIsQuery, c.query_kind);
    k.set(h + still[kBits], kIsNeedle, -kNeedleKey);
    k.set(h + still[kBits], kIsFiller, c.filler_key);
    v.set(h + kBits, kIsFiller, 1);
    for (int32_t d = 0; d <= kBits; ++d) o.set(kOut + d, h + d, c.share);
  }
  Matrix head("lm_head.weight", m.vocab(), kDim);
  for (int32_t i = 0; i < m.needles; ++i) {
    for (int32_t b = 0; b < kBits; ++b) head.set(m.needle_id(i), kOut + b, kAnswer * sign(i, b));
  }
  head.set(RecallModel::kNothing, kOut + kBits, kNothingLogit);

  std::vector<Matrix> all;
  all.push_back(embedding_of(m));
  for (Matrix* each : {&q, &k, &v, &o, &head}) all.push_back(std::move(*each));
  // The feed-forward part adds nothing: its last matrix is zero.
  const int64_t ffn = int64_t{m.tp} * kFfn;
  all.emplace_back(layer + "mlp.gate_proj.weight", ffn, kDim);
  all.emplace_back(layer + "mlp.up_proj.weight", ffn, kDim);
  all.emplace_back(layer + "mlp.down_proj.weight", kDim, ffn);
  for (const std::string& name :
       {layer + "input_layernorm.weight", layer + "post_attention_layernorm.weight",
        std::string("model.norm.weight")}) {
    Matrix& norm = all.emplace_back(name, 0, kDim);
    norm.values.assign(kDim, 1.0f);
  }
  return all;
}

std::string safetensors(std::span<const Matrix> tensors) {
  json header = json::object();
  std::string data;
  for (const Matrix& t : tensors) {
    const size_t begin = data.size();
    for (const float x : t.values) {
      const uint16_t bits = kernels::to_bf16(x).bits;
      data.push_back(static_cast<char>(bits & 255));
      data.push_back(static_cast<char>(bits >> 8));
    }
    const json shape = t.rows > 0 ? json{t.rows, t.cols} : json{t.cols};
    header[t.name] = {{"dtype", "BF16"}, {"shape", shape}, {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  std::string size;
  for (int shift = 0; shift < 64; shift += 8) {
    size.push_back(static_cast<char>(uint64_t{text.size()} >> shift & 255));
  }
  return size + text + data;
}

std::string config_json(const RecallModel& m) {
  return json{{"architectures", {"LlamaForCausalLM"}},
              {"model_type", "llama"},
              {"hidden_act", "silu"},
              {"num_hidden_layers", 1},
              {"hidden_size", kDim},
              {"num_attention_heads", m.tp},
              {"num_key_value_heads", m.tp},
              {"head_dim", m.head_dim},
              {"intermediate_size", m.tp * kFfn},
              {"vocab_size", m.vocab()},
              {"max_position_embeddings", m.context},
              {"rms_norm_eps", 1e-12},
              {"rope_theta", kTheta},
              {"tie_word_embeddings", false}}
      .dump(2);
}

std::string tokenizer_json(const RecallModel& m) {
  json vocab = json::object();
  for (int b = 0; b < RecallModel::kFillers; ++b)
    vocab[server::spelling_of_bytes(std::string(1, static_cast<char>(b)))] = b;
  for (int32_t i = 0; i < m.needles; ++i) {
    vocab[absl::StrCat("<needle", i, ">")] = m.needle_id(i);
    vocab[absl::StrCat("<ask", i, ">")] = m.ask_id(i);
  }
  const json level = {{"type", "ByteLevel"}, {"add_prefix_space", false}, {"use_regex", true}};
  return json{{"version", "1.0"},
              {"added_tokens", json::array()},
              {"normalizer", nullptr},
              {"pre_tokenizer", level},
              {"decoder", level},
              {"model", {{"type", "BPE"}, {"vocab", vocab}, {"merges", json::array()}}}}
      .dump();
}

}  // namespace

int32_t RecallModel::vocab() const {
  const int32_t used = kFillers + 2 * needles;
  return (used + tp - 1) / tp * tp;
}

int32_t RecallModel::own_query(int32_t i) const {
  if (i % 3 == 0 && i + 1 < needles) return i + 1;
  return i % 3 == 1 ? i - 1 : i;
}

absl::Status write_recall_model(const RecallModel& model, const std::string& folder) {
  if (model.needles < 1 || model.needles > RecallModel::kMaxNeedles) {
    return absl::InvalidArgumentError(absl::StrCat(model.needles, " needles are not in 1 to ",
                                                   RecallModel::kMaxNeedles,
                                                   ": take larger chunks"));
  }
  if (model.head_dim < 16 || model.head_dim % 8 != 0) {
    return absl::InvalidArgumentError("the head dimension must be a multiple of 8 from 16 on");
  }
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  const std::vector<Matrix> tensors = tensors_of(model);
  const std::pair<const char*, std::string> files[] = {{"config.json", config_json(model)},
                                                       {"tokenizer.json", tokenizer_json(model)},
                                                       {"model.safetensors", safetensors(tensors)}};
  for (const auto& [name, text] : files) {
    std::ofstream out(folder + "/" + name, std::ios::binary | std::ios::trunc);
    out << text;
    out.close();
    if (!out) return absl::PermissionDeniedError(absl::StrCat("cannot write ", folder, "/", name));
  }
  return absl::OkStatus();
}

RecallAnswer expected(const RecallModel& model, int32_t code, int64_t position,
                      const std::vector<PlacedNeedle>& needles, int64_t fillers, bool bf16_cache) {
  const Constants c = constants_of(model);
  const auto cached = [&](double x) { return bf16_cache ? bf16(x) : x; };
  const auto turned = [&](double length, int64_t at) {
    const double angle = static_cast<double>(at);
    return std::pair(cached(length * std::cos(angle)), cached(length * std::sin(angle)));
  };
  // Scores by distance of codes; masses relative to a needle's at distance 0.
  const double bit = c.query_bit * kKeyBit * c.scale;
  const double match = kBits * bit - c.query_kind * kNeedleKey * c.scale;
  const double filler = c.query_kind * c.filler_key * c.scale;
  std::array<double, kBits + 1> by_distance;
  for (int32_t d = 0; d <= kBits; ++d) by_distance[static_cast<size_t>(d)] = std::exp(-2 * d * bit);
  const auto [qx, qy] = turned(c.position_query, position);

  RecallAnswer answer;
  answer.output.assign(kBits + 1, 0.0);
  double total = static_cast<double>(fillers) * std::exp(filler - match);
  answer.output[kBits] = total;
  for (const PlacedNeedle& n : needles) {
    const int32_t distance = std::popcount(static_cast<uint32_t>(n.code ^ code));
    if (distance > 4) continue;  // below 1e-17 of the nearest
    const auto [kx, ky] = turned(kPositionKey, n.position);
    const double mass =
        by_distance[static_cast<size_t>(distance)] * std::exp((qx * kx + qy * ky) * c.scale);
    total += mass;
    for (int32_t b = 0; b < kBits; ++b) {
      answer.output[static_cast<size_t>(b)] += mass * sign(n.code, b);
    }
  }
  // The final norm sees the token's features, whose squares add up to kDim, and the output.
  double squares = kDim;
  for (double& o : answer.output) {
    o *= c.share * model.tp / total;
    squares += o * o;
  }
  answer.shrink = std::sqrt(kDim / squares);

  double highest = 0, second = 0, sum = 0;
  bool first = true;
  std::vector<std::pair<int32_t, double>> logits = {
      {RecallModel::kNothing, answer.shrink * kNothingLogit * answer.output[kBits]}};
  for (int32_t i = 0; i < model.needles; ++i) {
    double dot = 0;
    for (int32_t b = 0; b < kBits; ++b) dot += sign(i, b) * answer.output[static_cast<size_t>(b)];
    logits.emplace_back(model.needle_id(i), answer.shrink * kAnswer * dot);
  }
  for (const auto& [id, logit] : logits) {
    if (first || logit > highest) {
      second = first ? -std::numeric_limits<double>::infinity() : highest;
      highest = logit;
      answer.best = id;
    } else {
      second = std::max(second, logit);
    }
    first = false;
  }
  for (const auto& [id, logit] : logits) sum += std::exp(logit - highest);
  const double rest = model.vocab() - static_cast<double>(logits.size());  // logit 0
  sum += rest * std::exp(-highest);
  answer.log_total = highest + std::log(sum);
  answer.margin = highest - std::max(second, 0.0);
  return answer;
}

double RecallAnswer::logprob(const RecallModel& model, int32_t id) const {
  double logit = 0;
  const int32_t i = id - RecallModel::kFillers;
  if (id == RecallModel::kNothing) logit = shrink * kNothingLogit * output[kBits];
  if (i >= 0 && i < model.needles) {
    for (int32_t b = 0; b < kBits; ++b) logit += sign(i, b) * output[static_cast<size_t>(b)];
    logit *= shrink * kAnswer;
  }
  return logit - log_total;
}

}  // namespace annulus::bench
