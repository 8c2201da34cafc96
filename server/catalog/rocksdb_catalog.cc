// What lies in the database, in its default column family:
//
//   "m"         u32 version (1), u64 seq, 16 bytes chain value: the mark of the last applied group
//   "r" + key   a row's value
//
// A database without "m" has no rows. Integers are little-endian.
#include "server/catalog/rocksdb_catalog.h"

#include <rocksdb/db.h>
#include <rocksdb/env.h>
#include <rocksdb/options.h>
#include <rocksdb/table.h>
#include <rocksdb/write_batch.h>

#include <condition_variable>
#include <deque>
#include <filesystem>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "core/async/sync.h"
#include "core/base/check.h"
#include "core/base/fault_points.h"
#include "core/base/limits.h"
#include "core/base/log.h"
#include "server/catalog/rocksdb_faults.h"

namespace reprise::catalog {
namespace {

// Rows carry a prefix, so that no key of theirs can be the mark's.
constexpr char kMarkKey[] = "m";
constexpr char kRowPrefix = 'r';
constexpr uint32_t kMarkVersion = 1;
constexpr size_t kScanRowsMax = 1024;  // handed to the loop at once
constexpr size_t kScanBytesMax = limits::kMiB;

rocksdb::Slice SliceOf(std::string_view text) { return {text.data(), text.size()}; }

std::string EncodeMark(const Mark& mark) {
  ByteWriter writer;
  writer.U32(kMarkVersion);
  writer.U64(mark.seq);
  Put(writer, mark.chain);
  return std::string(TextOf(writer.view()));
}

Result<Mark> DecodeMark(ByteView bytes) {
  ByteReader reader(bytes);
  uint32_t version = reader.U32();
  Mark mark{reader.U64(), GetDigest(reader)};
  if (reader.ok() && version != kMarkVersion) {
    return Fail(Code::kUnimplemented,
                "the index has format {}, this build knows {}: upgrade Reprise", version,
                kMarkVersion);
  }
  if (!reader.AtEnd()) return Error(Code::kDataLoss, "the index's mark is malformed");
  return mark;
}

Status StatusFrom(const rocksdb::Status& status, std::string_view operation) {
  if (status.ok()) return OkStatus();
  // A missing file is reported as an I/O error or as corruption, depending on when it is noticed.
  bool damaged = status.IsCorruption() || status.IsNotFound() || status.IsInvalidArgument() ||
                 status.IsPathNotFound();
  Code code = damaged              ? Code::kDataLoss
              : status.IsNoSpace() ? Code::kResourceExhausted
                                   : Code::kUnavailable;
  return FailStatus(code, "index: {}: {}{}", operation, status.ToString(),
                    damaged ? ". The index is damaged; it can be rebuilt from the journal" : "");
}

rocksdb::Options MakeOptions() {
  rocksdb::Options options;
  options.create_if_missing = true;
  options.atomic_flush = true;
  options.paranoid_checks = true;
  options.paranoid_file_checks = true;
  options.write_buffer_size = 16 * limits::kMiB;
  options.max_write_buffer_number = 2;
  options.max_background_jobs = 2;
  options.compression = rocksdb::kNoCompression;
  options.avoid_flush_during_shutdown = true;  // what is durable is decided by Flush alone
  options.info_log_level = rocksdb::WARN_LEVEL;
  options.max_log_file_size = limits::kMiB;
  options.keep_log_file_num = 2;
  options.max_open_files = 256;
  rocksdb::BlockBasedTableOptions table;
  table.checksum = rocksdb::kXXH3;
  table.format_version = 5;
  table.block_cache = rocksdb::NewLRUCache(8 * limits::kMiB);
  options.table_factory.reset(rocksdb::NewBlockBasedTableFactory(table));
  if (FaultPoints* faults = FaultPoints::FromEnvironment()) {
    options.env = EnvWithFaultPoints(*faults);
  }
  return options;
}

rocksdb::ReadOptions MakeReadOptions() {
  rocksdb::ReadOptions options;
  options.verify_checksums = true;
  options.fill_cache = false;
  return options;
}

// One thread that does things in order. Work that is queued when it stops is still done.
class Worker {
 public:
  Worker() : thread_([this] { Run(); }) {}
  ~Worker() {
    {
      std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    wake_.notify_one();
    thread_.join();
  }
  void Post(std::function<void()> work) {
    {
      std::lock_guard lock(mutex_);
      queue_.push_back(std::move(work));
    }
    wake_.notify_one();
  }

 private:
  void Run() {
    std::unique_lock lock(mutex_);
    while (true) {
      wake_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (queue_.empty()) return;
      std::function<void()> work = std::move(queue_.front());
      queue_.pop_front();
      lock.unlock();
      work();
      lock.lock();
    }
  }
  std::mutex mutex_;
  std::condition_variable wake_;
  std::deque<std::function<void()>> queue_;
  bool stopping_ = false;
  std::thread thread_;  // last: it uses the others
};

// A result on its way from the worker to a coroutine of the loop. Shared, because the loop may be
// torn down (and the coroutine with it) while the worker is still at it.
template <typename T>
struct Reply {
  explicit Reply(Loop& loop) : arrived(loop) {}
  std::optional<T> value;  // the worker's until `arrived`
  OneShot<bool> arrived;
};

// Runs `work` on the worker and resumes with its result.
template <typename T>
Task<T> CallWorker(Loop& loop, Worker& worker, std::function<T()> work) {
  auto reply = std::make_shared<Reply<T>>(loop);
  worker.Post([&loop, reply, work = std::move(work)]() mutable {
    reply->value.emplace(work());
    work = nullptr;
    loop.Post([reply = std::move(reply)] { reply->arrived.Set(true); });
  });
  (void)co_await reply->arrived.Wait();
  co_return std::move(*reply->value);
}

// RocksDB takes a directory without CURRENT for a new one and removes the tables that are in it.
Status RefuseTablesWithoutCurrent(const std::string& path) {
  std::error_code error;
  if (std::filesystem::exists(path + "/CURRENT", error)) return OkStatus();
  for (std::filesystem::directory_iterator file(path, error), end; !error && file != end;
       file.increment(error)) {
    if (file->path().extension() != ".sst") continue;
    return FailStatus(Code::kDataLoss,
                      "index: {} holds tables but no CURRENT file. The index is damaged; it can be "
                      "rebuilt from the journal",
                      path);
  }
  return OkStatus();
}

// What belongs to the worker thread.
struct Database {
  std::unique_ptr<rocksdb::DB> db;
  ~Database() {
    if (db != nullptr) LogIfFailed(db->Close());
  }
  static void LogIfFailed(const rocksdb::Status& status) {
    if (!status.ok()) LogWarn("index: close: {}", status.ToString());
  }
};

struct ScanState {
  std::unique_ptr<rocksdb::Iterator> iterator;
};
struct ScanBatch {
  std::vector<std::pair<std::string, std::string>> rows;
  bool more = false;
  Status status;
};

class RocksdbCatalogImpl final : public Catalog {
 public:
  explicit RocksdbCatalogImpl(Loop& loop)
      : loop_(loop), database_(std::make_shared<Database>()), worker_(std::make_unique<Worker>()) {}
  ~RocksdbCatalogImpl() override { Stop(); }

  Task<Status> OpenDatabase(std::string path);

  Mark applied() const override { return applied_; }
  Mark flushed() const override { return flushed_; }
  Task<Status> Scan(std::function<Status(ByteView key, ByteView value)> row) override;
  Task<Status> Apply(Mark mark, std::vector<RowChange> changes) override;
  Task<Status> Flush() override;
  Task<void> Close() override;

 private:
  void Stop() {
    if (worker_ == nullptr) return;
    worker_->Post([database = std::move(database_)]() mutable { database.reset(); });
    worker_.reset();
  }
  template <typename T>
  Task<T> OnWorker(std::function<T(Database&)> work) {
    return CallWorker<T>(loop_, *worker_, [database = database_, work = std::move(work)] {
      return work(*database);
    });
  }
  Status FailedStatus() const {
    return Status(Code::kUnavailable, "the index has failed (see the first error): reopen it");
  }
  static Result<Mark> OpenOnWorker(Database& database, const std::string& path);
  static Status ApplyOnWorker(Database& database, const Mark& mark,
                              const std::vector<RowChange>& changes);
  static ScanBatch ScanOnWorker(Database& database, ScanState& state);

  Loop& loop_;
  std::shared_ptr<Database> database_;
  std::unique_ptr<Worker> worker_;
  Mark applied_;
  Mark flushed_;
  bool failed_ = false;
};

Result<Mark> RocksdbCatalogImpl::OpenOnWorker(Database& database, const std::string& path) {
  REPRISE_TRY(RefuseTablesWithoutCurrent(path));
  rocksdb::DB* db = nullptr;
  rocksdb::Status opened = rocksdb::DB::Open(MakeOptions(), path, &db);
  REPRISE_TRY(StatusFrom(opened, "open " + path));
  database.db.reset(db);
  std::string value;
  rocksdb::Status found = db->Get(MakeReadOptions(), kMarkKey, &value);
  if (found.IsNotFound()) {
    // Rows without a mark cannot be: they are written together.
    std::unique_ptr<rocksdb::Iterator> any(db->NewIterator(MakeReadOptions()));
    any->SeekToFirst();
    REPRISE_TRY(StatusFrom(any->status(), "open " + path));
    if (any->Valid()) return Error(Code::kDataLoss, "the index has rows but no mark");
    return Mark{};
  }
  REPRISE_TRY(StatusFrom(found, "open " + path));
  return DecodeMark(ViewOf(value));
}

Task<Status> RocksdbCatalogImpl::OpenDatabase(std::string path) {
  Result<Mark> mark = co_await OnWorker<Result<Mark>>(
      [path = std::move(path)](Database& database) { return OpenOnWorker(database, path); });
  if (!mark.has_value()) co_return mark.error();
  applied_ = *mark;
  flushed_ = *mark;
  co_return OkStatus();
}

ScanBatch RocksdbCatalogImpl::ScanOnWorker(Database& database, ScanState& state) {
  if (state.iterator == nullptr) {
    state.iterator.reset(database.db->NewIterator(MakeReadOptions()));
    state.iterator->Seek(rocksdb::Slice(&kRowPrefix, 1));
  }
  ScanBatch batch;
  size_t bytes = 0;
  rocksdb::Iterator& iterator = *state.iterator;
  for (; iterator.Valid() && iterator.key().starts_with(rocksdb::Slice(&kRowPrefix, 1));
       iterator.Next()) {
    batch.more = batch.rows.size() >= kScanRowsMax || bytes >= kScanBytesMax;
    if (batch.more) return batch;
    bytes += iterator.key().size() + iterator.value().size();
    batch.rows.emplace_back(iterator.key().ToString().substr(1), iterator.value().ToString());
  }
  batch.status = StatusFrom(iterator.status(), "scan");
  state.iterator.reset();
  return batch;
}

Task<Status> RocksdbCatalogImpl::Scan(std::function<Status(ByteView key, ByteView value)> row) {
  // The iterator must go before the database does, and on the worker.
  auto state = std::make_shared<ScanState>();
  Status status;
  while (true) {
    ScanBatch batch = co_await OnWorker<ScanBatch>(
        [state](Database& database) { return ScanOnWorker(database, *state); });
    status = batch.status;
    for (const auto& [key, value] : batch.rows) {
      if (status.ok()) status = row(ViewOf(key), ViewOf(value));
    }
    if (!batch.more || !status.ok()) break;
  }
  (void)co_await OnWorker<bool>([state](Database&) {
    state->iterator.reset();
    return true;
  });
  co_return status;
}

Status RocksdbCatalogImpl::ApplyOnWorker(Database& database, const Mark& mark,
                                         const std::vector<RowChange>& changes) {
  rocksdb::WriteBatch batch;
  rocksdb::Status built;
  std::string key;
  for (const RowChange& change : changes) {
    key.assign(1, kRowPrefix).append(change.key);
    built = change.value.has_value() ? batch.Put(key, SliceOf(*change.value)) : batch.Delete(key);
    REPRISE_RETURN_IF_ERROR(StatusFrom(built, "apply"));
  }
  REPRISE_RETURN_IF_ERROR(StatusFrom(batch.Put(kMarkKey, EncodeMark(mark)), "apply"));
  rocksdb::WriteOptions options;
  options.disableWAL = true;
  return StatusFrom(database.db->Write(options, &batch), "apply");
}

Task<Status> RocksdbCatalogImpl::Apply(Mark mark, std::vector<RowChange> changes) {
  REPRISE_CHECK(mark.seq > applied_.seq, "marks rise");
  if (failed_) co_return FailedStatus();
  applied_ = mark;  // before the first suspension: the next call may come before this one ends
  Status status =
      co_await OnWorker<Status>([mark, changes = std::move(changes)](Database& database) {
        return ApplyOnWorker(database, mark, changes);
      });
  if (!status.ok()) failed_ = true;
  co_return status;
}

Task<Status> RocksdbCatalogImpl::Flush() {
  if (failed_) co_return FailedStatus();
  Mark target = applied_;
  Status status = co_await OnWorker<Status>([](Database& database) {
    rocksdb::FlushOptions options;
    options.wait = true;
    return StatusFrom(database.db->Flush(options), "flush");
  });
  if (!status.ok()) failed_ = true;
  // An Apply before this flush may have failed: then `target` is not in what was flushed.
  if (failed_) co_return status.ok() ? FailedStatus() : status;
  if (target.seq > flushed_.seq) flushed_ = target;
  co_return OkStatus();
}

Task<void> RocksdbCatalogImpl::Close() {
  if (worker_ == nullptr) co_return;
  (void)co_await CallWorker<bool>(loop_, *worker_, [database = std::move(database_)]() mutable {
    database.reset();
    return true;
  });
  Stop();
}

}  // namespace

Task<Result<std::unique_ptr<Catalog>>> RocksdbCatalog::Open(Loop& loop, std::string path) {
  auto catalog = std::make_unique<RocksdbCatalogImpl>(loop);
  Status opened = co_await catalog->OpenDatabase(std::move(path));
  if (!opened.ok()) {
    co_await catalog->Close();
    co_return Error(std::move(opened));
  }
  co_return std::unique_ptr<Catalog>(std::move(catalog));
}

Status RocksdbCatalog::Destroy(const std::string& path) {
  // Not DestroyDB: it leaves behind what a damaged database does not know of.
  std::error_code error;
  std::filesystem::remove_all(path, error);
  if (error) return FailStatus(Code::kUnavailable, "remove {}: {}", path, error.message());
  return OkStatus();
}

}  // namespace reprise::catalog
