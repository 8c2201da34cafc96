// Rows: how the store's state lies in the catalog, key by key.
//
//   j <job>                 the job's identity (JobEntry)
//   e <job> <epoch>         a granted epoch and, once settled, its RESUME record
//   c <job> <epoch> <step>  a committed checkpoint with its pin and mark
//   s <attempt> <rank>      a prepared shard (PreparedEntry), committed or not
//   l <digest>              a stored layout (LayoutEntry)
//   x <job> <epoch> <step>  an attempt that is over for good, failed or deleted (OverRow)
//
// Numbers in keys are big-endian, so that a scan returns epochs, steps and ranks in order. A value
// is a version byte, then the journal's own encoding of the entry (docs/format.md, "Index").
// Reference counts and the free map are derived from rows at a rebuild and never stored.
//
// Thread rule: pure values and functions; no I/O.
#pragma once

#include <optional>
#include <string>
#include <variant>

#include "core/format/journal.h"
#include "reprise/status.h"
#include "server/catalog/catalog.h"

namespace reprise::lifecycle {

// A granted epoch of a job. `resume` is there once the epoch has settled.
struct EpochRow {
  format::EpochEntry grant;
  std::optional<format::ResumeEntry> resume;
  bool operator==(const EpochRow&) const = default;
};

// A committed checkpoint. `commit.level` is raised by PROMOTE.
struct CheckpointRow {
  format::CommitEntry commit;
  bool pinned = false;
  std::string pin_reason;
  format::Mark mark = format::Mark::kIntact;
  std::string mark_reason;
  bool operator==(const CheckpointRow&) const = default;
};

// An attempt that cannot come back: it failed, or it was committed and has been deleted.
struct OverRow {
  format::AbortEntry end;
  bool committed = false;
  bool operator==(const OverRow&) const = default;
};

using Row = std::variant<format::JobEntry, EpochRow, CheckpointRow, format::PreparedEntry,
                         format::LayoutEntry, OverRow>;

std::string KeyOf(const Row& row);
std::string EncodeRowValue(const Row& row);
// The change that puts (or removes) `row`.
catalog::RowChange PutRow(const Row& row);
catalog::RowChange RemoveRow(const Row& row);
// DATA_LOSS: the value does not decode or does not belong under `key`.
Result<Row> DecodeRow(ByteView key, ByteView value);

}  // namespace reprise::lifecycle
