// Golden bytes as seeds.
//
// Thread rule: pure functions; reads tests/golden of the repository root, the working folder.
#pragma once

#include <string_view>
#include <vector>

#include "core/base/bytes.h"

namespace reprise::fuzz {

// Bytes of tests/golden/v1/<name>.hex; empty when there is no such file.
Bytes Golden(std::string_view name);
// All golden files whose names begin with `prefix`, in order of names.
std::vector<Bytes> GoldenWithPrefix(std::string_view prefix);

}  // namespace reprise::fuzz
