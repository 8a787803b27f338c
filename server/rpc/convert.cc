// SPDX-License-Identifier: Apache-2.0
#include "server/rpc/convert.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <limits>
#include <mutex>
#include <random>
#include <span>
#include <type_traits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "server/rpc/profile.h"
#include "server/tokenizer/utf8.h"

namespace annulus::server {

namespace {

constexpr size_t kMaxRequestIdBytes = 256;

template <class... Args>
absl::Status invalid(const Args&... args) {
  return absl::InvalidArgumentError(absl::StrCat(args...));
}

absl::Status no_tokenizer() {
  return absl::FailedPreconditionError(
      "this server's model came without a tokenizer: send packed_tokens or tokens");
}

absl::StatusOr<int32_t> token_id(uint32_t id, int32_t vocab, const char* field, int64_t index) {
  if (id >= static_cast<uint32_t>(vocab)) {
    return invalid(field, "[", index, "] is ", id, ": the vocabulary has ids 0 to ", vocab - 1);
  }
  return static_cast<int32_t>(id);
}

template <class Ids>
absl::StatusOr<std::vector<int32_t>> token_ids(const Ids& ids, int32_t vocab, const char* field) {
  std::vector<int32_t> out;
  out.reserve(static_cast<size_t>(ids.size()));
  for (const uint32_t id : ids) {
    auto checked = token_id(id, vocab, field, static_cast<int64_t>(out.size()));
    if (!checked.ok()) return checked.status();
    out.push_back(*checked);
  }
  return out;
}

absl::StatusOr<std::vector<int32_t>> unpack_tokens(const std::string& bytes, int32_t vocab) {
  if (bytes.size() % 4 != 0) {
    return invalid("packed_tokens: ", bytes.size(),
                   " bytes are not a multiple of 4 (little-endian int32)");
  }
  std::vector<uint32_t> ids(bytes.size() / 4);
  if (!ids.empty()) std::memcpy(ids.data(), bytes.data(), bytes.size());
  return token_ids(ids, vocab, "packed_tokens");
}

absl::StatusOr<std::vector<int32_t>> encode_chat(const v1::Chat& chat, const Tokenizer* tokenizer) {
  if (tokenizer == nullptr) return no_tokenizer();
  if (absl::Status status = tokenizer->chat_status(); !status.ok()) return status;
  std::vector<ChatMessage> messages;
  messages.reserve(static_cast<size_t>(chat.messages_size()));
  for (const v1::Message& message : chat.messages()) {
    messages.push_back({message.role(), message.content()});
  }
  return tokenizer->encode_chat(messages, /*add_generation_prompt=*/true);
}

template <class Request>
absl::Status check_text_fits(const Request& proto, const Tokenizer* tokenizer, int64_t context) {
  if (tokenizer == nullptr) return absl::OkStatus();
  int64_t bytes = std::ssize(proto.text());
  for (const v1::Message& message : proto.chat().messages()) bytes += std::ssize(message.content());
  const int64_t most = context * tokenizer->longest_token_bytes();
  if (bytes <= most) return absl::OkStatus();
  return absl::OutOfRangeError(absl::StrCat("there are ", bytes, " bytes of text; the context of ",
                                            context, " tokens holds at most ", most,
                                            "; shorten it or serve with a larger --context"));
}

absl::StatusOr<std::vector<int32_t>> prompt_ids(const v1::GenerateRequest& proto,
                                                const Tokenizer* tokenizer, int32_t vocab) {
  switch (proto.prompt_case()) {
    case v1::GenerateRequest::kText:
      if (tokenizer == nullptr) return no_tokenizer();
      return proto.append() ? tokenizer->encode(proto.text(), /*parse_special=*/false)
                            : tokenizer->encode_prompt(proto.text(), /*parse_special=*/false);
    case v1::GenerateRequest::kChat:
      if (proto.append()) {
        return invalid(
            "append goes with text or token ids; send the whole chat, what the session holds of it "
            "is not computed again");
      }
      return encode_chat(proto.chat(), tokenizer);
    case v1::GenerateRequest::kPackedTokens: return unpack_tokens(proto.packed_tokens(), vocab);
    case v1::GenerateRequest::kTokens: return token_ids(proto.tokens().ids(), vocab, "tokens");
    case v1::GenerateRequest::PROMPT_NOT_SET:
      if (proto.append()) return std::vector<int32_t>();  // the session's answer goes on
      break;
  }
  return invalid("no prompt: set one of text, chat, packed_tokens or tokens");
}

// What is merely out of range is left to check_request (the engine); here, what would not survive
// the narrower types.
absl::StatusOr<int32_t> narrow(const char* field, uint32_t value) {
  if (value > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) {
    return invalid(field, " is ", value, ": too large");
  }
  return static_cast<int32_t>(value);
}

parallel::SamplingParams sampling_of(const v1::Sampling& proto) {
  constexpr uint32_t kMax = std::numeric_limits<int32_t>::max();
  return {.temperature = proto.temperature(),
          .top_k = static_cast<int32_t>(std::min(proto.top_k(), kMax)),
          .top_p = proto.has_top_p() ? proto.top_p() : 1.0f,
          .min_p = proto.min_p(),
          .seed = proto.has_seed() ? proto.seed() : draw_seed()};
}

absl::Status set_logprobs(const v1::GenerateRequest& proto, GenerateRequest& out) {
  if (proto.has_top_logprobs()) {
    if (proto.top_logprobs() > static_cast<uint32_t>(parallel::kMaxTop)) {
      return invalid("top_logprobs is ", proto.top_logprobs(), ", at most ", parallel::kMaxTop);
    }
    out.top_logprobs = static_cast<int32_t>(proto.top_logprobs());
  }
  out.all_prompt_logprobs = proto.all_prompt_logprobs();
  auto& positions = out.prompt_logprob_positions;
  positions.assign(proto.prompt_logprob_positions().begin(),
                   proto.prompt_logprob_positions().end());
  std::sort(positions.begin(), positions.end());
  positions.erase(std::unique(positions.begin(), positions.end()), positions.end());
  return absl::OkStatus();
}

absl::Status set_debug(const v1::GenerateRequest& proto, GenerateRequest& out) {
  switch (proto.attention()) {
    case v1::ATTENTION_AUTO: break;
    case v1::ATTENTION_PASS_KV: out.variant = parallel::Variant::kPassKv; break;
    case v1::ATTENTION_PASS_Q: out.variant = parallel::Variant::kPassQ; break;
    case v1::ATTENTION_GATHER_Q: out.variant = parallel::Variant::kGatherQ; break;
    default:
      return invalid("attention is ", static_cast<int>(proto.attention()),
                     ": 0 (auto), 1 (pass-kv), 2 (pass-q) or 3 (gather-q)");
  }
  if (proto.chunk_tokens() == 0) return absl::OkStatus();
  const auto chunk = narrow("chunk_tokens", proto.chunk_tokens());
  if (!chunk.ok()) return chunk.status();
  out.chunk_tokens = *chunk;
  return absl::OkStatus();
}

// Proto strings are UTF-8; names and paths come from files.
std::string as_utf8(std::string text) {
  if (!first_invalid_utf8(text)) return text;
  for (char& c : text) {
    if (static_cast<unsigned char>(c) >= 0x80) c = '?';
  }
  return text;
}

template <class Repeated>
void set_top(const std::vector<parallel::TopLogprob>& top, Repeated* out) {
  for (const parallel::TopLogprob& entry : top) {
    v1::TokenLogprob* proto = out->Add();
    proto->set_id(static_cast<uint32_t>(entry.id));
    proto->set_logprob(entry.logprob);
  }
}

void set_usage(const Usage& usage, v1::Usage& out) {
  out.set_prompt_tokens(usage.prompt_tokens);
  out.set_cached_tokens(usage.cached_tokens);
  out.set_completion_tokens(usage.completion_tokens);
  for (int32_t v = 0; v < parallel::kVariants; ++v) {
    const char* variant = parallel::name(static_cast<parallel::Variant>(v));
    if (usage.prefill_steps[v] > 0) {
      (*out.mutable_prefill_steps())[variant] = usage.prefill_steps[v];
    }
    if (usage.decode_steps[v] > 0) (*out.mutable_decode_steps())[variant] = usage.decode_steps[v];
  }
  out.set_queue_ms(usage.queue_ms);
  out.set_ttft_ms(usage.ttft_ms);
  out.set_decode_ms(usage.decode_ms);
}

}  // namespace

uint64_t draw_seed() {
  static std::mutex mutex;
  static std::random_device device;
  const std::lock_guard lock(mutex);
  return uint64_t{device()} << 32 | device();
}

absl::StatusOr<GenerateRequest> to_request(const v1::GenerateRequest& proto,
                                           const Tokenizer* tokenizer, int32_t vocab,
                                           int64_t context) {
  GenerateRequest out;
  if (proto.request_id().size() > kMaxRequestIdBytes) {
    return invalid("request_id has ", proto.request_id().size(), " bytes, at most ",
                   kMaxRequestIdBytes);
  }
  out.request_id = proto.request_id();
  out.session = proto.session();
  out.append = proto.append();
  const auto max_tokens = narrow("max_tokens", proto.max_tokens());
  if (!max_tokens.ok()) return max_tokens.status();
  out.max_tokens = *max_tokens;
  out.ignore_eos = proto.ignore_eos();
  out.sampling = sampling_of(proto.sampling());
  out.stop.assign(proto.stop().begin(), proto.stop().end());
  if (auto status = set_debug(proto, out); !status.ok()) return status;

  auto stop_ids = token_ids(proto.stop_token_ids(), vocab, "stop_token_ids");
  if (!stop_ids.ok()) return stop_ids.status();
  out.stop_ids = *std::move(stop_ids);
  auto forced = token_ids(proto.forced_tokens(), vocab, "forced_tokens");
  if (!forced.ok()) return forced.status();
  out.forced_tokens = *std::move(forced);
  if (auto status = check_text_fits(proto, tokenizer, context); !status.ok()) return status;
  auto prompt = prompt_ids(proto, tokenizer, vocab);
  if (!prompt.ok()) return prompt.status();
  out.prompt = *std::move(prompt);
  if (auto status = set_logprobs(proto, out); !status.ok()) return status;
  return out;
}

absl::StatusOr<v1::TokenizeResponse> tokenize(const v1::TokenizeRequest& proto,
                                              const Tokenizer* tokenizer, int64_t context) {
  if (tokenizer == nullptr) return no_tokenizer();
  if (auto status = check_text_fits(proto, tokenizer, context); !status.ok()) return status;
  absl::StatusOr<std::vector<int32_t>> ids = invalid("no input: set text or chat");
  if (proto.has_text()) ids = tokenizer->encode(proto.text(), proto.parse_special());
  if (proto.has_chat()) ids = encode_chat(proto.chat(), tokenizer);
  if (!ids.ok()) return ids.status();
  v1::TokenizeResponse out;
  out.mutable_ids()->Assign(ids->begin(), ids->end());
  return out;
}

absl::StatusOr<v1::DetokenizeResponse> detokenize(const v1::DetokenizeRequest& proto,
                                                  const Tokenizer* tokenizer) {
  if (tokenizer == nullptr) return no_tokenizer();
  auto ids = token_ids(proto.ids(), static_cast<int32_t>(tokenizer->vocab_size()), "ids");
  if (!ids.ok()) return ids.status();
  auto text = tokenizer->decode(*ids, proto.show_special());
  if (!text.ok()) return text.status();
  v1::DetokenizeResponse out;
  out.set_text(*std::move(text));
  return out;
}

v1::Attention to_proto(parallel::Variant variant) {
  switch (variant) {
    case parallel::Variant::kPassKv: return v1::ATTENTION_PASS_KV;
    case parallel::Variant::kPassQ: return v1::ATTENTION_PASS_Q;
    case parallel::Variant::kGatherQ: return v1::ATTENTION_GATHER_Q;
  }
  return v1::ATTENTION_AUTO;
}

v1::GenerateResponse to_proto(const Event& event, const ResponseContext& context) {
  v1::GenerateResponse out;
  std::visit(
      [&](const auto& e) {
        using T = std::decay_t<decltype(e)>;
        if constexpr (std::is_same_v<T, Accepted>) {
          v1::Accepted* accepted = out.mutable_accepted();
          accepted->set_request_id(e.request_id);
          accepted->set_prompt_tokens(e.prompt_tokens);
          accepted->set_cached_tokens(e.cached_tokens);
        } else if constexpr (std::is_same_v<T, PrefillProgress>) {
          v1::PrefillProgress* progress = out.mutable_progress();
          progress->set_done(e.done);
          progress->set_total(e.total);
          progress->set_attention(to_proto(e.variant));
          for (int32_t v = 0; v < parallel::kVariants; ++v) {
            (*progress->mutable_predicted_us())[parallel::name(static_cast<parallel::Variant>(v))] =
                e.predicted_us[v];
          }
        } else if constexpr (std::is_same_v<T, PromptLogprob>) {
          v1::PromptLogprob* logprob = out.mutable_prompt_logprob();
          logprob->set_position(e.position);
          if (e.token >= 0) {
            logprob->set_next_id(static_cast<uint32_t>(e.token));
            logprob->set_logprob(e.logprob);
          }
          set_top(e.top, logprob->mutable_top());
        } else if constexpr (std::is_same_v<T, Token>) {
          v1::Token* token = out.mutable_token();
          token->set_id(static_cast<uint32_t>(e.id));
          token->set_text(e.text);
          if (context.logprobs) token->set_logprob(e.logprob);
          set_top(e.top, token->mutable_top());
        } else if constexpr (std::is_same_v<T, Finished>) {
          v1::Finished* finished = out.mutable_finished();
          finished->set_reason(name(e.reason));
          finished->set_stop_text(e.stop_text);
          set_usage(e.usage, *finished->mutable_usage());
          finished->set_seed(context.seed);
        }
      },
      event);
  return out;
}

int64_t event_bytes(const Event& event) {
  size_t bytes = sizeof(Event);
  if (const auto* token = std::get_if<Token>(&event)) {
    bytes += token->text.size() + token->top.size() * sizeof(parallel::TopLogprob);
  } else if (const auto* logprob = std::get_if<PromptLogprob>(&event)) {
    bytes += logprob->top.size() * sizeof(parallel::TopLogprob);
  }
  return static_cast<int64_t>(bytes);
}

namespace {

v1::Spent to_proto(const RankSpent& spent) {
  v1::Spent out;
  out.set_steps_us(spent.steps_us);
  out.set_attention_us(spent.attention_us);
  out.set_sendrecv_us(spent.sendrecv_us);
  out.set_all_to_all_us(spent.all_to_all_us);
  out.set_all_gather_us(spent.all_gather_us);
  out.set_waited_us(spent.waited_us);
  for (size_t p = 0; p < kernels::kPhases; ++p) {
    if (spent.phases_us[p] > 0) {
      (*out.mutable_phases_us())[kernels::name(static_cast<kernels::Phase>(p))] =
          spent.phases_us[p];
    }
  }
  return out;
}

}  // namespace

v1::GetClusterResponse to_proto(const ClusterStatus& status) {
  v1::GetClusterResponse out;
  out.set_serving(status.serving);
  out.set_why_not(as_utf8(status.why_not));
  out.set_epoch(status.epoch);
  out.set_tp(status.topology.tp);
  out.set_cp(status.topology.cp);
  out.set_kv_capacity_rows(status.kv_capacity_rows);
  for (const RankStatus& rank : status.ranks) {
    v1::Rank* proto = out.add_ranks();
    proto->set_world_rank(rank.info.world_rank);
    proto->set_tp_rank(status.topology.tp_rank(rank.info.world_rank));
    proto->set_cp_rank(status.topology.cp_rank(rank.info.world_rank));
    proto->set_host(as_utf8(rank.info.host));
    proto->set_pid(rank.info.pid);
    proto->set_cpu_isa(rank.info.cpu_isa);
    proto->set_threads(rank.info.threads);
    proto->set_weight_bytes(rank.info.weight_bytes);
    proto->set_load_s(rank.info.load_s);
    if (rank.info.weights_from >= 0) proto->set_weights_from(rank.info.weights_from);
    proto->set_kv_rows(rank.kv_rows);
    proto->set_kv_bytes(rank.kv_bytes);
    proto->set_resident_bytes(rank.resident_bytes);
    proto->set_workspace_peak_bytes(rank.workspace_peak_bytes);
    proto->set_step_us(rank.step_us);
    proto->set_idle_us(rank.idle_us);
    *proto->mutable_spent() = to_proto(rank.spent);
    proto->mutable_recent()->set_compute_us(rank.recent.compute_us);
    proto->mutable_recent()->set_ring_us(rank.recent.ring_us);
    proto->mutable_recent()->set_other_us(rank.recent.other_us);
    proto->mutable_recent()->set_excess(rank.recent.excess);
    proto->mutable_recent()->set_straggles(rank.recent.straggles);
  }
  for (int32_t v = 0; v < parallel::kVariants; ++v) {
    (*out.mutable_steps_by_variant())[parallel::name(static_cast<parallel::Variant>(v))] =
        status.steps[v];
  }
  out.set_steps_total(status.steps_total);
  out.set_decode_steps(status.decode_steps);
  out.set_plans_ahead(status.plans_ahead);
  for (const auto& [field, value] : profile_values(status.profile)) {
    (*out.mutable_profile())[field] = value;
  }
  out.set_profile_source(status.profile_source);
  out.set_requests_running(status.requests_running);
  out.set_requests_waiting(status.requests_waiting);
  out.set_sessions(status.sessions);
  return out;
}

v1::GetModelResponse to_proto(const parallel::LlamaConfig& config, const ModelFacts& facts,
                              const Tokenizer* tokenizer) {
  v1::GetModelResponse out;
  out.set_name(as_utf8(config.name));
  out.set_path(as_utf8(facts.path));
  out.set_layers(config.layers);
  out.set_dim(config.dim);
  out.set_heads(config.heads);
  out.set_kv_heads(config.kv_heads);
  out.set_head_dim(config.head_dim);
  out.set_vocab(config.vocab);
  out.set_trained_context(config.trained_context);
  out.set_served_context(facts.served_context);
  out.set_precision(facts.precision);
  if (tokenizer == nullptr) return out;
  for (const int32_t id : tokenizer->eos_ids()) out.add_eos_ids(static_cast<uint32_t>(id));
  if (tokenizer->chat_status().ok()) {
    out.set_chat_template(tokenizer->control_id("<|start_header_id|>") ? "llama3" : "chatml");
  }
  return out;
}

}  // namespace annulus::server
