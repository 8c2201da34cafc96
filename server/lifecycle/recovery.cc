// Recovery of a store directory. Every step may be cut off by a crash and starts over from R1;
// nothing below changes anything that a second run would read differently.
//
//   R1  open and lock SUPER; two copies must agree. None intact: a directory whose making was cut
//       off is made (again), but only if the journal holds nothing
//   R2  open the index; if it does not open, or contradicts itself, start from an empty one
//   R3  open the journal from what the index holds durably: copies compared and repaired, chain
//       checked. The index was lost and the ring has wrapped: DATA_LOSS with what to do
//   R4  replay: every group after the index's mark through StoreState into the index; flush it.
//       An entry that is impossible in its state: DATA_LOSS
//   R5  the ledger's live extents are adopted by the tier; all else is free. Two owners: DATA_LOSS
//   R6  SUPER rewritten with a higher incarnation (repairs damaged copies)
//   R7  hand over. Store::Open then verifies checkpoint manifests (damage is marked, not fatal),
//       rewrites missing certificates, revives attempts from PREPARED shards, and serves
#include "server/lifecycle/recovery.h"

#include <algorithm>
#include <utility>

#include "core/base/log.h"
#include "server/tier/nvme_tier.h"

namespace reprise::lifecycle {
namespace {

// The directory that holds `path`.
std::string ParentOf(const std::string& path) {
  size_t slash = path.find_last_of('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

}  // namespace

Task<void> RecoveredParts::CloseAll() {
  if (tier != nullptr) co_await tier->Close();
  if (journal != nullptr) co_await journal->Close();
  if (catalog != nullptr) co_await catalog->Close();
  if (super.has_value()) {
    Status closed = co_await super->Close();
    if (!closed.ok()) LogWarn("closing SUPER: {}", closed.ToString());
  }
  tier = nullptr;
  journal = nullptr;
  catalog = nullptr;
  super.reset();
}

Task<Result<std::unique_ptr<RecoveredParts>>> Recovery::Run() {
  parts_ = std::make_unique<RecoveredParts>();
  Status status = co_await Steps();
  if (status.ok()) co_return std::move(parts_);
  co_await parts_->CloseAll();
  co_return Error(status.Annotate("store " + options_.directory));
}

Task<Status> Recovery::Steps() {
  REPRISE_CO_RETURN_IF_ERROR(co_await OpenSuperblock());
  REPRISE_CO_RETURN_IF_ERROR(co_await OpenCatalog());
  REPRISE_CO_RETURN_IF_ERROR(co_await OpenJournal());
  REPRISE_CO_RETURN_IF_ERROR(co_await OpenTier());
  parts_->superblock.incarnation += 1;
  REPRISE_CO_RETURN_IF_ERROR(co_await parts_->super->Write(parts_->superblock));
  for (const auto& [id, job] : parts_->state.jobs()) {
    parts_->report.checkpoints += job.checkpoints.size();
  }
  co_return OkStatus();
}

journal::Options Recovery::JournalOptions() const {
  const std::string& mirror = options_.journal_mirror_directory;
  journal::Options options;
  options.path_a = options_.directory + "/JOURNAL.0";
  options.path_b = (mirror.empty() ? options_.directory : mirror) + "/JOURNAL.1";
  options.slot_count = parts_->superblock.journal_slots;
  options.store = parts_->superblock.store;
  options.mutations = options_.journal_mutations;
  return options;
}

// --- R1

Task<Status> Recovery::OpenSuperblock() {
  REPRISE_CO_ASSIGN_STATUS(parts_->super,
                           co_await SuperblockFile::Open(io_, options_.directory, options_.create));
  REPRISE_CO_ASSIGN_STATUS(SuperblockImage image, co_await parts_->super->Read());
  if (image.agreed.has_value()) {
    parts_->superblock = *image.agreed;
    parts_->report.repairs = std::move(image.repairs);
  } else {
    if (!options_.create) {
      co_return Status(Code::kNotFound,
                       "SUPER holds no two copies that agree: not a store, or "
                       "another volume is mounted here: mount the right one, or restore SUPER");
    }
    REPRISE_CO_RETURN_IF_ERROR(co_await MakeDirectoryContent());
  }
  const format::Superblock& super = parts_->superblock;
  parts_->geometry = {super.chunk_bytes, super.segment_bytes, super.segment_count,
                      super.journal_slots};
  co_return OkStatus();
}

Task<Status> Recovery::MakeDirectoryContent() {
  const Geometry& geometry = options_.geometry;
  parts_->superblock = {rng_.NewId(),          rng_.NewId(),           0,
                        geometry.chunk_bytes,  geometry.segment_bytes, geometry.segment_count,
                        geometry.journal_slots};
  REPRISE_CO_RETURN_IF_ERROR(co_await io_.SyncDirectory(ParentOf(options_.directory)));
  if (!options_.journal_mirror_directory.empty()) {
    REPRISE_CO_RETURN_IF_ERROR(co_await io_.MakeDirectory(options_.journal_mirror_directory));
    REPRISE_CO_RETURN_IF_ERROR(
        co_await io_.SyncDirectory(ParentOf(options_.journal_mirror_directory)));
  }
  Status made = co_await journal::Journal::Create(io_, JournalOptions());
  if (made.code() == Code::kAlreadyExists) {
    co_return Status(Code::kDataLoss,
                     "SUPER is lost but the journal holds a history: restore SUPER from another "
                     "copy, or move the directory away");
  }
  REPRISE_CO_RETURN_IF_ERROR(made);
  // Written last: two agreeing copies prove that everything before is there.
  co_return co_await parts_->super->Write(parts_->superblock);
}

// --- R2

Task<Status> Recovery::OpenCatalog() {
  Result<std::unique_ptr<catalog::Catalog>> opened =
      co_await make_catalog_(IndexDirectory(), /*fresh=*/false);
  // Only damage makes way for a rebuild: a full disk or a lock that is held passes, an index that was
  // thrown away may be the only record of what the ring no longer holds.
  if (!opened.has_value()) {
    if (opened.error().code() != Code::kDataLoss) co_return opened.error();
    co_return co_await RebuildFresh(opened.error());
  }
  parts_->catalog = std::move(*opened);
  Status loaded = co_await LoadCatalog();
  if (loaded.ok() || loaded.code() != Code::kDataLoss) co_return loaded;
  co_return co_await RebuildFresh(loaded);
}

Task<Status> Recovery::LoadCatalog() {
  StoreState& state = parts_->state;
  REPRISE_CO_RETURN_IF_ERROR(
      co_await parts_->catalog->Scan([&state](ByteView key, ByteView value) -> Status {
        REPRISE_ASSIGN_STATUS(Row row, DecodeRow(key, value));
        return state.LoadRow(row);
      }));
  co_return state.FinishLoad();
}

Task<Status> Recovery::RebuildFresh(Status why) {
  rebuilding_ = true;
  parts_->report.repairs.push_back("index rebuilt from the journal: " + why.ToString());
  if (parts_->catalog != nullptr) co_await parts_->catalog->Close();
  parts_->catalog = nullptr;
  parts_->state = StoreState();
  REPRISE_CO_ASSIGN_STATUS(parts_->catalog,
                           co_await make_catalog_(IndexDirectory(), /*fresh=*/true));
  co_return OkStatus();
}

// --- R3, R4

Task<Status> Recovery::OpenJournal() {
  Result<journal::Journal::Recovered> recovered =
      co_await journal::Journal::Open(io_, JournalOptions(), parts_->catalog->applied());
  if (!recovered.has_value()) {
    bool beyond =
        parts_->catalog->applied().seq == 0 && recovered.error().code() == Code::kDataLoss;
    co_return beyond
        ? recovered.error().Annotate(
              "the index is lost or empty, and the journal alone cannot rebuild it; put "
              "back a copy of index/ (index.damaged, if another build of reprised can read it)")
        : Status(recovered.error());
  }
  parts_->journal = std::move(recovered->journal);
  for (std::string& repair : recovered->repairs) {
    parts_->report.repairs.push_back("journal: " + repair);
  }
  co_return co_await Replay(std::move(recovered->replay));
}

Task<Status> Recovery::Replay(std::vector<journal::Group> groups) {
  if (groups.empty()) co_return OkStatus();
  for (const journal::Group& group : groups) {
    std::vector<catalog::RowChange> rows;
    for (const format::Entry& entry : group.entries) {
      Result<StoreState::Change> change = parts_->state.Apply(entry);
      if (!change.has_value()) {
        co_return FailStatus(Code::kDataLoss,
                             "journal group {} does not follow from the state before it ({}): do "
                             "not write to this directory, report it",
                             group.mark.seq, change.error().message());
      }
      rows.insert(rows.end(), change->rows.begin(), change->rows.end());
    }
    REPRISE_CO_RETURN_IF_ERROR(co_await parts_->catalog->Apply(group.mark, std::move(rows)));
  }
  REPRISE_CO_RETURN_IF_ERROR(co_await parts_->catalog->Flush());
  parts_->journal->SetIndexed(parts_->catalog->flushed());
  parts_->report.replayed_groups = groups.size();
  co_return OkStatus();
}

// --- R5

Task<Status> Recovery::OpenTier() {
  tier::NvmeOptions options;
  options.directory = options_.directory + "/seg";
  options.segment_bytes = parts_->geometry.segment_bytes;
  options.segment_count = parts_->geometry.segment_count;
  options.prewrite = options_.prewrite_segments;
  options.mutations = options_.tier_mutations;
  REPRISE_CO_ASSIGN_STATUS(parts_->tier, co_await tier::NvmeTier::Open(io_, options));
  std::vector<format::Run> live = parts_->state.LiveRuns();
  if (options_.mutations.forget_prepared) {
    for (const auto& [id, attempt] : parts_->state.attempts()) {
      if (attempt.committed) continue;
      for (const auto& [rank, shard] : attempt.shards) {
        std::erase_if(live, [&](const format::Run& run) {
          return run == shard.manifest.run || std::ranges::count(shard.runs, run) > 0;
        });
      }
    }
  }
  co_return parts_->tier->Adopt(std::move(live));
}

}  // namespace reprise::lifecycle
