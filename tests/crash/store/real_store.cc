#include "tests/crash/store/real_store.h"

#include <filesystem>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "server/catalog/rocksdb_catalog.h"

namespace reprise::crash {
namespace {

using namespace std::chrono_literals;

// As the daemon does it: a damaged index is kept beside the new one.
Task<Result<std::unique_ptr<catalog::Catalog>>> OpenIndex(Loop& loop, std::string directory,
                                                          bool fresh) {
  std::error_code error;
  if (fresh && std::filesystem::exists(directory, error)) {
    std::filesystem::remove_all(directory + ".damaged", error);
    std::filesystem::rename(directory, directory + ".damaged", error);
    if (error) co_return Fail(Code::kUnavailable, "{}: {}", directory, error.message());
  }
  co_return co_await catalog::RocksdbCatalog::Open(loop, directory);
}

}  // namespace

lifecycle::StoreOptions SmallStore(const std::string& directory) {
  lifecycle::StoreOptions options;
  options.directory = directory;
  options.geometry = {
      .chunk_bytes = 4096, .segment_bytes = 64 * 1024, .segment_count = 5, .journal_slots = 16};
  options.coordinator.node_timeout = 100ms;
  options.coordinator.inventory_grace = 1ms;
  options.coordinator.settle_timeout = 20ms;
  return options;
}

RealStore::~RealStore() {
  if (store_ != nullptr) Close();
}

Status RealStore::Open(lifecycle::StoreOptions options) {
  if (io_ == nullptr) {
    REPRISE_ASSIGN_STATUS(io_, CreateIo(loop_));
  }
  REPRISE_ASSIGN_STATUS(
      store_, Run(lifecycle::Store::Open(*io_, rng_, std::move(options),
                                         [this](std::string directory, bool fresh) {
                                           return OpenIndex(loop_, std::move(directory), fresh);
                                         })));
  return OkStatus();
}

void RealStore::Close() {
  Run(store_->Close());
  store_.reset();
}

}  // namespace reprise::crash
