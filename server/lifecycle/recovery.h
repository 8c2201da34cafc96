// Recovery: from a directory to the parts of a running store (narrative on top of recovery.cc).
//
// Thread rule: the Io's loop. Used once, by Store::Open.
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "core/io/io.h"
#include "server/catalog/catalog.h"
#include "server/journal/journal.h"
#include "server/lifecycle/store.h"
#include "server/lifecycle/store_state.h"
#include "server/lifecycle/superblock.h"
#include "server/tier/tier.h"

namespace reprise::lifecycle {

// What recovery hands over: everything open, state and free map rebuilt, nothing served yet.
struct RecoveredParts {
  std::optional<SuperblockFile> super;
  format::Superblock superblock;
  Geometry geometry;
  StoreState state;
  std::unique_ptr<catalog::Catalog> catalog;
  std::unique_ptr<journal::Journal> journal;
  std::unique_ptr<tier::Tier> tier;
  RecoveryReport report;

  // Closes whatever is open, in reverse order.
  Task<void> CloseAll();
};

class Recovery {
 public:
  Recovery(Io& io, Rng& rng, StoreOptions options, CatalogFactory make_catalog)
      : io_(io), rng_(rng), options_(std::move(options)), make_catalog_(std::move(make_catalog)) {}

  // Steps R1 to R7. On failure everything is closed again.
  Task<Result<std::unique_ptr<RecoveredParts>>> Run();

 private:
  Task<Status> Steps();
  Task<Status> OpenSuperblock();
  Task<Status> MakeDirectoryContent();
  Task<Status> OpenCatalog();
  Task<Status> LoadCatalog();
  Task<Status> RebuildFresh(Status why);
  Task<Status> OpenJournal();
  Task<Status> Replay(std::vector<journal::Group> groups);
  Task<Status> OpenTier();
  journal::Options JournalOptions() const;
  std::string IndexDirectory() const { return options_.directory + "/index"; }

  Io& io_;
  Rng& rng_;
  const StoreOptions options_;
  const CatalogFactory make_catalog_;
  std::unique_ptr<RecoveredParts> parts_;
  bool rebuilding_ = false;
};

}  // namespace reprise::lifecycle
