// What is in a checkpoint, as JSON for people and for the Python package.
//
// {"step","epoch","world","metadata","items":[{"name","dtype","shape","scope","aux","policy",
//  "ranks":[...],"bytes"}]}, items by name. "bytes" is the whole tensor's; items of scope "rank" and
// auxiliary ones have "sizes" too: the bytes of each of "ranks", since they may differ.
//
// Thread rule: pure function. nlohmann-json is used inside items.cc only.
#pragma once

#include <string>

#include "client/restore/planner.h"
#include "core/format/manifest.h"

namespace reprise::client {

std::string ItemsJson(const format::CheckpointManifest& manifest, const SavedState& saved);

// INVALID_ARGUMENT unless `text` is empty or a JSON object of at most format::kMetadataBytesMax.
Status CheckMetadata(std::string_view text);

}  // namespace reprise::client
