// SPDX-License-Identifier: Apache-2.0
// How an answer is shown in a terminal: a progress bar while the prompt is computed, the text as it
// comes, and one line of figures. Used by `annulus generate` and `annulus chat`; one thread.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "annulus/v1/inference.pb.h"

namespace annulus::server {

class AnswerView {
 public:
  struct Options {
    bool text = true;       // to stdout, as it comes
    bool progress = false;  // a bar on stderr
  };
  explicit AnswerView(Options options) : options_(options) {}

  void on_event(const v1::GenerateResponse& event);
  void end();  // takes the bar away, ends the line of text

  const std::string& text() const { return text_; }
  const std::vector<uint32_t>& ids() const { return ids_; }
  const v1::Finished& finished() const { return finished_; }
  const v1::PrefillProgress& last_progress() const { return last_progress_; }
  // Tokens, cache, time to the first token, tokens a second, variants and why.
  std::string figures() const;

 private:
  void draw(const v1::PrefillProgress& progress);
  void clear_bar();

  const Options options_;
  std::string text_;
  std::vector<uint32_t> ids_;
  v1::Accepted accepted_;
  v1::PrefillProgress last_progress_;
  v1::Finished finished_;
  bool bar_ = false;
};

// "pass-kv x3, gather-q x1"; "none".
std::string join_counts(const google::protobuf::Map<std::string, int64_t>& counts);
double tokens_per_second(const v1::Usage& usage);  // of decoding, after the first token

// Prints the error as one line; the exit code for it.
int report(const char* command, const absl::Status& status);

}  // namespace annulus::server
