// SPDX-License-Identifier: Apache-2.0
// What the tokenizer tests share: the goldens, the model's tokenizer, and a vocabulary small enough
// to reason about.
#pragma once

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "server/tokenizer/tokenizer.h"

namespace annulus::server {

// Lines of tests/golden/NAME.
std::vector<nlohmann::json> golden_lines(const std::string& name);

// SmolLM2's tokenizer, from $ANNULUS_MODEL or the cache; loaded once. Fails the test with the way
// to get it.
const Tokenizer& smollm2();

std::vector<ChatMessage> messages_of(const nlohmann::json& golden);

// All 256 bytes, then the results of the merges in order, then <s> (BOS) and </s> (EOS), both
// control tokens.
TokenizerData small_data(const std::vector<std::pair<std::string, std::string>>& merges);
// The same as the text of a tokenizer.json.
nlohmann::json small_json(const std::vector<std::pair<std::string, std::string>>& merges);

// A folder that is removed with the test.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  std::string write(const std::string& name, const std::string& text) const;  // its path
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace annulus::server
