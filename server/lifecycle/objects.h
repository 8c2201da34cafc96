// Objects: layouts and manifests as they lie in a tier: one contiguous run, read and checked whole.
//
// An object is referred to by an ObjectRef held by its parent (journal entry or manifest), which
// knows its length and digest. The run may be longer than the object: a checkpoint manifest's last
// 4 KiB are its certificate.
//
// Thread rule: the tier's loop.
#pragma once

#include <cstdint>
#include <string_view>

#include "core/format/manifest.h"
#include "reprise/status.h"
#include "server/tier/tier.h"

namespace reprise::lifecycle {

// Largest object that is read back.
inline constexpr uint64_t kObjectBytesMax = 256 * limits::kMiB;

// Reserves one contiguous run and writes `content` into it; `tail_bytes` more stay unwritten at the
// end. Not flushed. On failure nothing stays reserved.
Task<Result<format::ObjectRef>> WriteObject(tier::Tier& tier, Bytes content, uint64_t tail_bytes);

// DATA_LOSS: the bytes do not match the reference's digest; `what` names the object.
Task<Result<Bytes>> ReadObject(tier::Tier& tier, format::ObjectRef object, std::string what);

}  // namespace reprise::lifecycle
