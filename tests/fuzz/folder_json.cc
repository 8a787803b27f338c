// SPDX-License-Identifier: Apache-2.0
// The small JSON files of a Hugging Face folder, each read as both: config.json, and
// model.safetensors.index.json.
#include "parallel/model/checkpoint.h"
#include "parallel/model/rope.h"
#include "parallel/model/safetensors.h"
#include "tests/fuzz/target.h"

ANNULUS_FUZZ_TARGET(folder_json) {
  const std::string_view text = text_of(data, size);
  if (const auto index = parallel::parse_safetensors_index(text, "index.json"); index.ok()) {
    for (const auto& [tensor, file] : *index)
      ANNULUS_CHECK(file.find('/') == std::string::npos && file[0] != '.', file);
  } else {
    check_error(index.status());
  }
  if (const auto bound = parallel::f8_input_bound_from_json(text, "config.json"); bound.ok()) {
    ANNULUS_CHECK(!*bound || **bound > 0);
  } else {
    check_error(bound.status());
  }
  const auto config = parallel::config_from_json(text, "config.json");
  if (!config.ok()) return check_error(config.status());
  for (const int tp : parallel::valid_tp(*config))
    ANNULUS_CHECK(parallel::check_tp(*config, tp).ok(), tp);
  ANNULUS_CHECK(static_cast<int32_t>(parallel::rope_frequencies(*config).size()) ==
                config->head_dim / 2);
}
