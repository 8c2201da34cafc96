// How people name checkpoints: [TENANT/]JOB[@STEP[~EPOCH]] or [TENANT/]JOB[@latest].
//
// Without a tenant the tenant is "default". INVALID_ARGUMENT shows the form and what was wrong.
// Thread rule: pure functions.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "reprise/status.h"
#include "reprise/types.h"

namespace reprise::cli {

struct Reference {
  std::string tenant = "default";
  std::string job;
  std::optional<uint64_t> step;
  std::optional<uint64_t> epoch;
  std::string ToString() const;
};

Result<Reference> ParseReference(std::string_view text);

}  // namespace reprise::cli
