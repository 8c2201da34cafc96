// Volume: a store of about 1 MiB in memory, and what is known of every 4 KiB block of it.
//
// Made once by the product's store: seven checkpoints of two ranks, one of them pinned, and a journal
// whose last groups the index does not hold yet, so that a recovery reads all of it. A sweep then
// damages it, opens it, judges what it shows, and takes everything back.
//
// Thread rule: one thread.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/clock.h"
#include "server/catalog/memory_catalog.h"
#include "server/lifecycle/store.h"
#include "tests/crash/flips/flat_io.h"

namespace reprise::crash {

inline constexpr uint32_t kVolumeWorld = 2;
inline constexpr uint64_t kVolumeShardBytes = 15 * 4096;
inline constexpr uint64_t kVolumeCheckpoints = 7;

enum class BlockKind : uint8_t {
  kFree,
  kPayload,
  kShardManifest,
  kManifest,
  kCertificate,
  kLayout
};

// What lies in one block of a segment.
struct Block {
  BlockKind kind = BlockKind::kFree;
  CheckpointKey key;
  uint32_t rank = 0;
  uint64_t chunk = 0;
  Digest layout;
  uint64_t length = 4096;  // of it are content, the rest padding
};

class Volume {
 public:
  // `index_directory`: the index is a RocksDB there, made anew; empty: it is in memory, too.
  // `mutation`: a check that recovery leaves out, to show that a sweep notices.
  explicit Volume(std::string index_directory = "", std::string mutation = "");

  // Makes the content. Afterwards the store is closed and nothing but its files is left.
  Status Make();
  Status Open();
  // The process ends; `orderly` or not, files and index keep what they have.
  void Close();
  // Takes files and (in memory) index back to what Make left.
  void Rollback();

  lifecycle::Store& store() { return *store_; }
  FlatIo& io() { return io_; }
  const Id& job() const { return job_; }
  // What recovery finds in an undamaged volume.
  const std::map<std::string, std::string>& rows() const { return rows_; }
  // Blocks of the segment files, by path.
  const std::map<std::string, std::vector<Block>>& blocks() const { return blocks_; }

  template <typename T>
  T Run(Task<T> task) {
    return loop_.RunTask(std::move(task));
  }

 private:
  lifecycle::StoreOptions Options() const;
  Task<Result<std::unique_ptr<catalog::Catalog>>> OpenIndex(bool fresh);
  Task<Status> Fill();
  Task<Status> SaveOne(uint64_t step, Id process[]);
  void Learn();
  Block& At(const format::Run& run, uint64_t position);

  const std::string index_directory_;
  const std::string mutation_;
  bool made_ = false;
  SystemClock clock_;
  Loop loop_;
  Rng rng_{1};
  FlatIo io_;
  catalog::MemoryCatalogDisk index_;
  catalog::MemoryCatalogDisk index_at_mark_;
  std::unique_ptr<lifecycle::Store> store_;
  Id job_;
  uint64_t epoch_ = 0;
  std::map<std::string, std::string> rows_;
  std::map<std::string, std::vector<Block>> blocks_;
};

}  // namespace reprise::crash
