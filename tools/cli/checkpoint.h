// Opening a checkpoint for a command: resolve the reference, find the data plane, connect to it.
//
// Thread rule: one thread. Blocking.
#pragma once

#include <map>
#include <memory>
#include <string_view>

#include "core/format/layout.h"
#include "tools/cli/commands.h"
#include "tools/cli/data_reader.h"

namespace reprise::cli {

struct OpenedCheckpoint {
  Connection connection;
  v1::CheckpointInfo info;
  std::unique_ptr<DataReader> reader;
};
Result<OpenedCheckpoint> OpenCheckpoint(const GlobalOptions& options, const Reference& reference);

// Every distinct layout of the checkpoint.
Result<std::map<Digest, format::Layout>> ReadLayouts(DataReader& reader);

// The state numbers of the control API as words.
std::string_view StateName(uint32_t state);

}  // namespace reprise::cli
