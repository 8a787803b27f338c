// SPDX-License-Identifier: Apache-2.0
// What the front end knows of a model: config, fingerprint and tokenizer, read without touching the
// weights. Errors: NotFound or InvalidArgument naming the file, for the operator.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "parallel/model/checkpoint.h"
#include "server/tokenizer/tokenizer.h"

namespace annulus::server {

struct ServedModel {
  std::shared_ptr<const parallel::Checkpoint> checkpoint;  // shared with ranks in this process
  std::shared_ptr<const Tokenizer> tokenizer;              // shared by the engine and rpc
};

absl::StatusOr<ServedModel> open_model(const std::string& path,
                                       const parallel::ConfigOverrides& overrides);

}  // namespace annulus::server
