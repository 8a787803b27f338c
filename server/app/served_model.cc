// SPDX-License-Identifier: Apache-2.0
#include "server/app/served_model.h"

#include <utility>

#include "server/tokenizer/load.h"

namespace annulus::server {

absl::StatusOr<ServedModel> open_model(const std::string& path,
                                       const parallel::ConfigOverrides& overrides) {
  auto checkpoint = parallel::Checkpoint::open(path, overrides);
  if (!checkpoint.ok()) return checkpoint.status();
  ServedModel model;
  model.checkpoint = std::make_shared<const parallel::Checkpoint>(*std::move(checkpoint));
  const parallel::GgufFile* gguf = model.checkpoint->gguf();
  const std::string& directory = model.checkpoint->directory();
  auto tokenizer = gguf != nullptr      ? tokenizer_from_gguf(*gguf)
                   : !directory.empty() ? tokenizer_from_json(directory)
                                        : byte_tokenizer(model.checkpoint->config().vocab);
  if (!tokenizer.ok()) return tokenizer.status();
  model.tokenizer = *std::move(tokenizer);
  return model;
}

}  // namespace annulus::server
