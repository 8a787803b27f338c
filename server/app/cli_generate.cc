// SPDX-License-Identifier: Apache-2.0
// `annulus generate`: one request, streamed to stdout.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "server/app/cli_answer.h"
#include "server/app/cli_commands.h"
#include "server/rpc/client.h"

namespace annulus::server {

namespace {

constexpr const char* kExamples = R"(Examples:
  annulus generate --chat "What is ring attention?"
  annulus generate --prompt "Once upon a time" --max-tokens 64 --temperature 0.8 --seed 7
  annulus generate --prompt-file book.txt --max-tokens 100     a progress bar shows the prefill
  annulus generate --tokens-file ids.bin --json                little-endian int32, or numbers as text
  annulus generate --chat "And then?" --session s1 --stop $'\n\n'
  cat notes.txt | annulus generate
Answers stream to stdout, figures and progress go to stderr.)";

struct GenerateFlags {
  std::string server = "127.0.0.1:50051";
  std::optional<std::string> prompt, prompt_file, chat, tokens_file;
  std::string session, request_id, attention = "auto";
  bool append = false, ignore_eos = false, json = false, progress = false, quiet = false;
  uint32_t max_tokens = 256, top_k = 0, chunk_tokens = 0;
  float temperature = 0, top_p = 1, min_p = 0;
  std::optional<uint64_t> seed;
  std::optional<uint32_t> logprobs;
  std::vector<std::string> stop;
};

absl::StatusOr<std::string> read_all(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return absl::NotFoundError(absl::StrCat("cannot read ", path));
  constexpr size_t kMostBytes = size_t{2} << 30;  // no message holds more
  std::string content;
  std::vector<char> piece(size_t{1} << 20);
  while (in.read(piece.data(), static_cast<std::streamsize>(piece.size())) || in.gcount() > 0) {
    content.append(piece.data(), static_cast<size_t>(in.gcount()));
    if (content.size() > kMostBytes)
      return absl::InvalidArgumentError(absl::StrCat(path, " is too long for a prompt"));
  }
  if (in.bad() || std::filesystem::is_directory(path)) {
    return absl::InvalidArgumentError(absl::StrCat(path, " cannot be read: is it a file?"));
  }
  return content;
}

// Numbers as text (separated by space, commas or brackets), or else packed already. Packed ids
// below 2^24 have a zero byte each, so that text which is no list of ids is not taken for them.
absl::StatusOr<std::string> packed_tokens(const std::string& content) {
  constexpr const char* kSeparators = " \t\r\n,[]";
  if (content.find('\0') != std::string::npos) return content;
  std::string packed;
  for (const absl::string_view word :
       absl::StrSplit(content, absl::ByAnyChar(kSeparators), absl::SkipEmpty())) {
    uint32_t id = 0;
    if (!absl::SimpleAtoi(word, &id)) {
      return absl::InvalidArgumentError(absl::StrCat("\"", word, "\" is not a token id"));
    }
    for (int shift = 0; shift < 32; shift += 8) packed.push_back(static_cast<char>(id >> shift));
  }
  return packed;
}

absl::Status set_prompt(const GenerateFlags& flags, v1::GenerateRequest& request) {
  const int given = flags.prompt.has_value() + flags.prompt_file.has_value() +
                    flags.chat.has_value() + flags.tokens_file.has_value();
  if (given > 1) {
    return absl::InvalidArgumentError(
        "give one of --prompt, --prompt-file, --chat and --tokens-file");
  }
  if (flags.prompt) request.set_text(*flags.prompt);
  if (flags.chat) {
    v1::Message* message = request.mutable_chat()->add_messages();
    message->set_role("user");
    message->set_content(*flags.chat);
  }
  if (flags.prompt_file) {
    auto text = read_all(*flags.prompt_file);
    if (!text.ok()) return text.status();
    request.set_text(*std::move(text));
  }
  if (flags.tokens_file) {
    const auto content = read_all(*flags.tokens_file);
    if (!content.ok()) return content.status();
    auto packed = packed_tokens(*content);
    if (!packed.ok()) return packed.status();
    request.set_packed_tokens(*std::move(packed));
  }
  if (given == 0) {
    if (isatty(STDIN_FILENO) != 0) {
      return absl::InvalidArgumentError(
          "no prompt: give --prompt TEXT, --prompt-file F, --chat TEXT or --tokens-file F");
    }
    request.set_text(std::string(std::istreambuf_iterator<char>(std::cin), {}));
  }
  return absl::OkStatus();
}

absl::StatusOr<v1::GenerateRequest> request_of(const GenerateFlags& flags) {
  v1::GenerateRequest request;
  if (auto status = set_prompt(flags, request); !status.ok()) return status;
  request.set_session(flags.session);
  request.set_request_id(flags.request_id);
  request.set_append(flags.append);
  request.set_max_tokens(flags.max_tokens);
  request.set_ignore_eos(flags.ignore_eos);
  v1::Sampling* sampling = request.mutable_sampling();
  sampling->set_temperature(flags.temperature);
  sampling->set_top_k(flags.top_k);
  sampling->set_top_p(flags.top_p);
  sampling->set_min_p(flags.min_p);
  if (flags.seed) sampling->set_seed(*flags.seed);
  for (const std::string& stop : flags.stop) request.add_stop(stop);
  if (flags.logprobs) request.set_top_logprobs(*flags.logprobs);
  request.set_chunk_tokens(flags.chunk_tokens);
  if (flags.attention == "pass-kv") request.set_attention(v1::ATTENTION_PASS_KV);
  if (flags.attention == "pass-q") request.set_attention(v1::ATTENTION_PASS_Q);
  if (flags.attention == "gather-q") request.set_attention(v1::ATTENTION_GATHER_Q);
  return request;
}

nlohmann::json counts_json(const google::protobuf::Map<std::string, int64_t>& counts) {
  nlohmann::json out = nlohmann::json::object();
  for (const auto& [variant, count] : counts) out[variant] = count;
  return out;
}

nlohmann::json token_json(const v1::Token& token) {
  nlohmann::json out = {{"id", token.id()}, {"text", token.text()}};
  if (token.has_logprob()) out["logprob"] = token.logprob();
  for (const v1::TokenLogprob& top : token.top()) out["top"].push_back({top.id(), top.logprob()});
  return out;
}

nlohmann::json answer_json(const AnswerView& view) {
  const v1::Usage& usage = view.finished().usage();
  nlohmann::json predicted = nlohmann::json::object();
  for (const auto& [variant, us] : view.last_progress().predicted_us()) predicted[variant] = us;
  return {{"text", view.text()},
          {"ids", view.ids()},
          {"reason", view.finished().reason()},
          {"stop_text", view.finished().stop_text()},
          {"seed", view.finished().seed()},
          {"predicted_us", predicted},
          {"tokens_per_second", tokens_per_second(usage)},
          {"usage",
           {{"prompt_tokens", usage.prompt_tokens()},
            {"cached_tokens", usage.cached_tokens()},
            {"completion_tokens", usage.completion_tokens()},
            {"prefill_steps", counts_json(usage.prefill_steps())},
            {"decode_steps", counts_json(usage.decode_steps())},
            {"queue_ms", usage.queue_ms()},
            {"ttft_ms", usage.ttft_ms()},
            {"decode_ms", usage.decode_ms()}}}};
}

int generate(const GenerateFlags& flags) {
  const auto request = request_of(flags);
  if (!request.ok()) return report("generate", request.status());
  InferenceClient client(flags.server);
  const bool progress = !flags.json && (flags.progress || isatty(STDERR_FILENO) != 0);
  AnswerView view({.text = !flags.json, .progress = progress && !flags.quiet});
  nlohmann::json tokens = nlohmann::json::array();
  const absl::Status status = client.generate(*request, [&](const v1::GenerateResponse& event) {
    view.on_event(event);
    if (flags.json && flags.logprobs && event.has_token()) {
      tokens.push_back(token_json(event.token()));
    }
  });
  view.end();
  if (!status.ok()) return report("generate", status);
  if (flags.json) {
    nlohmann::json out = answer_json(view);
    if (flags.logprobs) out["tokens"] = std::move(tokens);
    // Text is UTF-8 by contract; a server that broke it must not end this program.
    std::printf("%s\n", out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
  } else if (!flags.quiet) {
    std::fprintf(stderr, "%s\n", view.figures().c_str());
  }
  return 0;
}

}  // namespace

void add_generate(CLI::App& app, Command& run) {
  auto flags = std::make_shared<GenerateFlags>();
  CLI::App* sub = app.add_subcommand("generate", "Sends one prompt and streams the answer");
  sub->footer(kExamples);
  sub->add_option("--server", flags->server, "HOST:PORT")
      ->envname("ANNULUS_SERVER")
      ->capture_default_str();
  sub->add_option("--prompt", flags->prompt, "text, continued as it stands");
  sub->add_option("--prompt-file", flags->prompt_file, "the same, from a file");
  sub->add_option("--chat", flags->chat, "a user's message, through the model's chat template");
  sub->add_option("--tokens-file", flags->tokens_file, "token ids: packed int32, or as text");
  sub->add_option("--max-tokens", flags->max_tokens, "0: as many as the context allows")
      ->capture_default_str();
  sub->add_option("--temperature", flags->temperature, "0: the most likely token")
      ->capture_default_str();
  sub->add_option("--top-k", flags->top_k, "0: off")->capture_default_str();
  sub->add_option("--top-p", flags->top_p, "1: off")->capture_default_str();
  sub->add_option("--min-p", flags->min_p, "0: off")->capture_default_str();
  sub->add_option("--seed", flags->seed, "of sampling; default: drawn by the server")
      ->check([](const std::string& text) -> std::string {
        uint64_t seed = 0;  // CLI11 takes -1 for 2^64 - 1
        if (absl::SimpleAtoi(text, &seed)) return "";
        return absl::StrCat("\"", text, "\" is not a whole number from 0 to 2^64 - 1");
      });
  sub->add_option("--stop", flags->stop, "text that ends the answer; may be given again")
      ->allow_extra_args(false);
  sub->add_flag("--ignore-eos", flags->ignore_eos, "go on past the end of the answer");
  sub->add_option("--logprobs", flags->logprobs, "log-probabilities, with this many alternatives")
      ->check(CLI::Range(0, 128));
  sub->add_option("--session", flags->session, "keeps the KV of this conversation on the server");
  sub->add_flag("--append", flags->append, "the prompt follows what the session holds");
  sub->add_option("--request-id", flags->request_id, "for the server's log");
  sub->add_option("--attention", flags->attention,
                  "auto, pass-kv, pass-q, gather-q (server with --debug-requests)")
      ->check(CLI::IsMember({"auto", "pass-kv", "pass-q", "gather-q"}))
      ->capture_default_str();
  sub->add_option("--chunk-tokens", flags->chunk_tokens,
                  "prompt tokens in a step (server with --debug-requests)");
  sub->add_flag("--json", flags->json, "one JSON object at the end instead of text");
  sub->add_flag("--progress", flags->progress, "the progress bar even where stderr is no terminal");
  sub->add_flag("--quiet", flags->quiet, "text only");
  sub->callback([flags, &run] { run = [flags] { return generate(*flags); }; });
}

}  // namespace annulus::server
