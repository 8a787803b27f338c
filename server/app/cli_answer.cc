// SPDX-License-Identifier: Apache-2.0
#include "server/app/cli_answer.h"

#include <algorithm>
#include <cstdio>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "server/one_line.h"

namespace annulus::server {

namespace {

constexpr int kBarWidth = 30;

const char* name(v1::Attention attention) {
  switch (attention) {
    case v1::ATTENTION_PASS_KV: return "pass-kv";
    case v1::ATTENTION_PASS_Q: return "pass-q";
    case v1::ATTENTION_GATHER_Q: return "gather-q";
    default: return "";
  }
}

std::string microseconds(double us) {
  return us < 10000 ? absl::StrFormat("%.0f us", us) : absl::StrFormat("%.1f ms", us / 1000);
}

}  // namespace

std::string join_counts(const google::protobuf::Map<std::string, int64_t>& counts) {
  const std::map<std::string, int64_t> sorted(counts.begin(), counts.end());
  std::vector<std::string> parts;
  for (const auto& [variant, count] : sorted) {
    if (count > 0) parts.push_back(absl::StrCat(variant, " x", count));
  }
  return parts.empty() ? "none" : absl::StrJoin(parts, ", ");
}

double tokens_per_second(const v1::Usage& usage) {
  return usage.completion_tokens() > 1 && usage.decode_ms() > 0
             ? static_cast<double>(usage.completion_tokens() - 1) * 1000 / usage.decode_ms()
             : 0;
}

int report(const char* command, const absl::Status& status) {
  std::fprintf(stderr, "annulus %s: %s: %s\n", command,
               absl::StatusCodeToString(status.code()).c_str(),
               one_line({status.message().data(), status.message().size()}).c_str());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kFailedPrecondition:
    case absl::StatusCode::kOutOfRange:
    case absl::StatusCode::kNotFound: return 2;
    default: return 1;
  }
}

void AnswerView::on_event(const v1::GenerateResponse& event) {
  switch (event.event_case()) {
    case v1::GenerateResponse::kAccepted: accepted_ = event.accepted(); break;
    case v1::GenerateResponse::kProgress:
      last_progress_ = event.progress();
      draw(last_progress_);
      break;
    case v1::GenerateResponse::kToken:
      clear_bar();
      ids_.push_back(event.token().id());
      text_ += event.token().text();
      if (options_.text) {
        std::fputs(event.token().text().c_str(), stdout);
        std::fflush(stdout);
      }
      break;
    case v1::GenerateResponse::kFinished: finished_ = event.finished(); break;
    default: break;
  }
}

void AnswerView::end() {
  clear_bar();
  if (!options_.text) return;
  if (!text_.empty() && text_.back() != '\n') std::fputc('\n', stdout);
  std::fflush(stdout);
}

void AnswerView::draw(const v1::PrefillProgress& progress) {
  if (!options_.progress || progress.total() <= 0) return;
  const auto filled = static_cast<int>(
      std::clamp<int64_t>(progress.done() * kBarWidth / progress.total(), 0, kBarWidth));
  std::fprintf(stderr, "\r\033[Kprefill [%s%s] %lld/%lld tokens, %s",
               std::string(static_cast<size_t>(filled), '#').c_str(),
               std::string(static_cast<size_t>(kBarWidth - filled), '.').c_str(),
               static_cast<long long>(progress.done()), static_cast<long long>(progress.total()),
               name(progress.attention()));
  std::fflush(stderr);
  bar_ = true;
}

void AnswerView::clear_bar() {
  if (!bar_) return;
  std::fputs("\r\033[K", stderr);
  bar_ = false;
}

std::string AnswerView::figures() const {
  const v1::Usage& usage = finished_.usage();
  const double share = usage.prompt_tokens() > 0
                           ? 100.0 * static_cast<double>(usage.cached_tokens()) /
                                 static_cast<double>(usage.prompt_tokens())
                           : 0;
  std::string out = absl::StrFormat(
      "[%d prompt tokens, %d cached (%.0f %%); first token %.2f s; %d tokens, %.1f/s, %s; "
      "prefill %s, decode %s",
      usage.prompt_tokens(), usage.cached_tokens(), share, usage.ttft_ms() / 1000,
      usage.completion_tokens(), tokens_per_second(usage), finished_.reason(),
      join_counts(usage.prefill_steps()), join_counts(usage.decode_steps()));
  if (last_progress_.predicted_us_size() > 0) {
    const std::map<std::string, double> predicted(last_progress_.predicted_us().begin(),
                                                  last_progress_.predicted_us().end());
    std::vector<std::string> parts;
    parts.reserve(predicted.size());
    for (const auto& [variant, us] : predicted) {
      parts.push_back(absl::StrCat(variant, " ", microseconds(us)));
    }
    absl::StrAppend(&out, "; predicted for the last chunk: ", absl::StrJoin(parts, ", "));
  }
  return out + "]";
}

}  // namespace annulus::server
