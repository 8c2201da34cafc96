// Reader: one checkpoint, open for reading through the node daemon.
//
// Open fetches the checkpoint manifest and its layouts and checks them against their parents' digests.
// When the daemon is restarted meanwhile, the same checkpoint is opened again and a read goes on with
// the chunks that had not arrived.
//
// Thread rule: one owner. Blocking rule: Open and Read, until their deadline.
#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>

#include "client/restore/planner.h"
#include "client/restore/restorer.h"
#include "client/restore/ring.h"

namespace reprise::client {

struct ReaderOptions {
  std::string tenant;
  std::string job;
  std::optional<uint64_t> step;
  std::optional<uint64_t> epoch;
  uint32_t rank = 0;
  uint32_t world = 1;
};

class Reader {
 public:
  // Attempts of one Read at a connection that breaks.
  static constexpr int kAttemptsMax = 3;

  // NOT_FOUND: no such checkpoint. DATA_LOSS: its manifest or a layout is damaged beyond repair.
  static Result<std::unique_ptr<Reader>> Open(Session& session, CopyEngine& engine,
                                              RestoreRing& ring, ReaderOptions options,
                                              Deadline deadline);
  ~Reader();

  const format::CheckpointManifest& manifest() const { return manifest_; }
  const SavedState& saved() const { return saved_; }
  // Sums over all reads so far.
  const ReadStats& stats() const { return stats_; }
  // Codes of Checkpoint::Read. `map_slots`: see Restorer::Connection.
  Status Read(std::span<const PieceView> pieces, bool map_slots, Deadline deadline);

 private:
  Reader(Session& session, CopyEngine& engine, RestoreRing& ring, ReaderOptions options)
      : session_(session), engine_(engine), ring_(ring), options_(std::move(options)) {}
  void AddStats(const ReadStats& read, double plan_ms, double read_ms);
  Status OpenStream(Deadline deadline);
  Status LoadLayouts(Deadline deadline);
  Result<std::vector<format::ShardManifest>> LoadShards(const RestorePlan& plan, Deadline deadline);
  Status ReadOnce(Restorer& restorer, bool map_slots, Deadline deadline);

  Session& session_;
  CopyEngine& engine_;
  RestoreRing& ring_;
  const ReaderOptions options_;
  uint64_t generation_ = 0;
  uint64_t stream_ = 0;
  format::CheckpointManifest manifest_;
  SavedState saved_;
  ReadStats stats_;
};

// Checks the caller's pieces and copies their description. INVALID_ARGUMENT names the piece.
Result<std::vector<WantedPiece>> WantedOf(std::span<const PieceView> pieces);

}  // namespace reprise::client
