#include "server/daemon.h"

#include <unistd.h>

#include <filesystem>
#include <utility>

#include "core/base/check.h"
#include "core/base/log.h"
#include "core/base/random.h"
#include "core/io/buffer_pool.h"
#include "server/catalog/rocksdb_catalog.h"
#include "server/dataplane/local_store_link.h"
#include "server/dataplane/store_server.h"
#include "server/lifecycle/store.h"
#include "server/loop_coordinator.h"
#include "server/loop_thread.h"
#include "server/node/node.h"
#include "server/remote_store_link.h"
#include "server/rpc/control_server.h"
#include "server/rpc/coordinator_stub.h"
#include "server/web/http_server.h"
#include "server/web/metrics_page.h"

namespace reprise {
namespace {

std::string HostName() {
  char name[256] = "unknown";
  gethostname(name, sizeof(name) - 1);
  return name;
}

std::string Description(std::string_view role) {
  return fmt::format("reprised {} on {} (pid {})", role, HostName(), getpid());
}

IoOptions IoOptionsOf(const Config& config) {
  return {config.io.engine, config.io.queue_depth, config.io.threads};
}

Status MakeDirectories(const std::string& path) {
  std::error_code error;
  std::filesystem::create_directories(path, error);
  if (!error) return OkStatus();
  return FailStatus(Code::kUnavailable, "cannot make directory {}: {}", path, error.message());
}

// A damaged index is kept beside the new one (the last one only): if the journal does not reach back
// far enough to rebuild it, it is what is left.
Status SetAside(const std::string& directory) {
  std::string aside = directory + ".damaged";
  std::error_code error;
  if (!std::filesystem::exists(directory)) return OkStatus();
  std::filesystem::remove_all(aside, error);
  std::filesystem::rename(directory, aside, error);
  if (error) {
    return FailStatus(Code::kUnavailable, "cannot move the damaged index {} aside: {}", directory,
                      error.message());
  }
  LogWarn("the damaged index is kept as {}; remove it when the store is well", aside);
  return OkStatus();
}

Task<Result<std::unique_ptr<catalog::Catalog>>> OpenIndex(Loop& loop, std::string directory,
                                                          bool fresh) {
  if (fresh) REPRISE_CO_TRY(SetAside(directory));
  co_return co_await catalog::RocksdbCatalog::Open(loop, directory);
}

// The store role: everything that lives on the store's loop, and its control API.
class StoreRole {
 public:
  Status Start(const Config& config) {
    if (config.store.create) {
      REPRISE_RETURN_IF_ERROR(MakeDirectories(config.store.directory));
    }
    REPRISE_RETURN_IF_ERROR(thread_.Start(IoOptionsOf(config)));
    REPRISE_RETURN_IF_ERROR(
        thread_.Call<Status>([&] { return OpenStore(config); }).Annotate("store"));
    for (const std::string& line : store_->recovery().repairs) LogWarn("recovery: {}", line);
    LogInfo("store {}: {} checkpoints, {} journal groups replayed", config.store.directory,
            store_->recovery().checkpoints, store_->recovery().replayed_groups);
    REPRISE_RETURN_IF_ERROR(
        thread_.Call<Status>([&] { return OpenDataPlane(config); }).Annotate("data plane"));
    REPRISE_ASSIGN_STATUS(
        control_, rpc::ControlServer::Start(thread_.loop(), *store_, config.store.control_listen,
                                            [this] { return Describe(); }));
    LogInfo("control API at {}, data plane at {}", control_->address(), data_address_);
    return OkStatus();
  }

  // Data plane first: it uses the store. The control API last: the store ends its waits.
  void Stop() {
    if (data_plane_ != nullptr) thread_.Call<void>([&] { return data_plane_->Close(); });
    if (store_ != nullptr) thread_.Call<void>([&] { return store_->Close(); });
    if (control_ != nullptr) control_->Stop();
    if (store_ != nullptr || data_plane_ != nullptr) {
      thread_.Do([&] {
        data_plane_.reset();
        local_buffers_.reset();
        store_.reset();
      });
    }
    thread_.Join();
  }

  LoopThread& thread() { return thread_; }
  lifecycle::Store& store() { return *store_; }
  // Chunk buffers for a node role in this process.
  BufferPool& local_buffers() { return *local_buffers_; }
  std::string control_address() const { return control_->address(); }
  const std::string& data_address() const { return data_address_; }

  Status Health() {
    bool failed = thread_.Do([&] { return store_->failed(); });
    if (!failed) return OkStatus();
    return Status(Code::kInternal,
                  "the journal could not be written: outcome unknown, the store must restart and "
                  "recover");
  }

  void AddMetrics(web::MetricsSnapshot& snapshot) {
    thread_.Do([&] {
      tier::TierUsage usage = store_->usage();
      snapshot.tier_capacity_bytes = usage.capacity_bytes;
      snapshot.tier_used_bytes = usage.used_bytes;
      snapshot.tier_suspect_bytes = usage.suspect_bytes;
      dataplane::StoreServerMetrics metrics = data_plane_->metrics();
      snapshot.data_received_bytes = metrics.bytes_received;
      snapshot.data_sent_bytes = metrics.bytes_sent;
      snapshot.store_chunks_corrupt = metrics.chunks_corrupt;
      snapshot.connections = metrics.connections;
      snapshot.io_engine = thread_.io().Name();
    });
    auto jobs =
        thread_.Call<Result<std::vector<lifecycle::JobInfo>>>([&] { return store_->ListJobs(""); });
    if (!jobs.has_value()) return;
    for (const lifecycle::JobInfo& job : *jobs) {
      snapshot.jobs.push_back(thread_.Call<web::JobMetrics>([&] { return MetricsOf(job); }));
    }
  }

 private:
  Task<Status> OpenStore(const Config& config) {
    lifecycle::StoreOptions options;
    options.directory = config.store.directory;
    options.journal_mirror_directory = config.store.journal_mirror_directory;
    options.prewrite_segments = config.store.prewrite;
    options.create = config.store.create;
    options.geometry.chunk_bytes = config.store.chunk_bytes;
    options.geometry.segment_bytes = config.store.segment_bytes;
    options.geometry.journal_slots = config.store.journal_slots;
    uint64_t capacity = config.store.capacity_bytes;
    if (capacity == 0 && config.store.create) {
      REPRISE_CO_ASSIGN_STATUS(uint64_t free,
                               co_await thread_.io().FreeBytes(config.store.directory));
      capacity = free / 10 * 8;
    }
    options.geometry.segment_count =
        static_cast<uint32_t>(std::max<uint64_t>(2, capacity / config.store.segment_bytes));
    options.coordinator.begin_window = config.store.begin_window;
    options.coordinator.attempt_timeout = config.store.attempt_timeout;
    options.coordinator.settle_timeout = config.store.settle_timeout;
    options.coordinator.node_timeout = config.store.node_timeout;
    options.coordinator.inventory_grace = config.store.inventory_grace;
    REPRISE_CO_ASSIGN_STATUS(
        store_, co_await lifecycle::Store::Open(
                    thread_.io(), rng_, options, [this](std::string directory, bool fresh) {
                      return OpenIndex(thread_.loop(), std::move(directory), fresh);
                    }));
    co_return OkStatus();
  }

  Task<Status> OpenDataPlane(const Config& config) {
    dataplane::StoreServerOptions options;
    options.address = config.store.data_listen;
    options.self = store_->id();
    options.description = Description("store");
    options.receive_buffers = config.store.receive_buffers;
    options.send_buffers = config.store.receive_buffers / 2;
    options.connections_max = config.store.connections;
    options.idle_timeout = config.store.idle_timeout;
    options.read_idle_timeout = config.store.read_idle_timeout;
    data_plane_ = std::make_unique<dataplane::StoreServer>(thread_.io(), *store_, options);
    REPRISE_CO_RETURN_IF_ERROR(co_await data_plane_->Start());
    data_address_ =
        config.store.data_advertise.empty() ? data_plane_->address() : config.store.data_advertise;
    if (config.HasNode()) {
      REPRISE_CO_ASSIGN_STATUS(local_buffers_,
                               BufferPool::Create(thread_.io(), {store_->geometry().chunk_bytes,
                                                                 config.store.receive_buffers}));
    }
    co_return OkStatus();
  }

  rpc::StoreDescription Describe() {
    tier::TierUsage usage = store_->usage();
    return {.store = store_->id(),
            .version = REPRISE_VERSION,
            .data_address = data_address_,
            .chunk_bytes = store_->geometry().chunk_bytes,
            .capacity_bytes = usage.capacity_bytes,
            .used_bytes = usage.used_bytes,
            .suspect_bytes = usage.suspect_bytes,
            .io_engine = thread_.io().Name(),
            .recovery = store_->recovery().repairs};
  }

  Task<web::JobMetrics> MetricsOf(lifecycle::JobInfo job) {
    web::JobMetrics metrics{.job = job.tenant + "/" + job.name,
                            .checkpoints = job.checkpoint_count,
                            .epoch = job.epoch};
    if (job.latest.has_value()) {
      metrics.last_committed_step = job.latest->step;
      auto info =
          co_await store_->Resolve(job.tenant, job.name, {job.latest->step, job.latest->epoch});
      if (info.has_value()) {
        metrics.last_commit_timestamp_seconds = static_cast<double>(info->wall_micros) / 1e6;
      }
    }
    co_return metrics;
  }

  LoopThread thread_;
  Rng rng_{RandomSeed()};
  std::unique_ptr<lifecycle::Store> store_;
  std::unique_ptr<dataplane::StoreServer> data_plane_;
  std::unique_ptr<BufferPool> local_buffers_;
  std::unique_ptr<rpc::ControlServer> control_;
  std::string data_address_;
};

// The node role. `local` is the store role of the same process, or null.
class NodeRole {
 public:
  Status Start(const Config& config, StoreRole* local) {
    REPRISE_RETURN_IF_ERROR(MakeDirectories(config.node.slab_directory));
    std::string parent = std::filesystem::path(config.node.socket).parent_path();
    if (!parent.empty()) REPRISE_RETURN_IF_ERROR(MakeDirectories(parent));
    REPRISE_RETURN_IF_ERROR(thread_.Start(IoOptionsOf(config)));
    return thread_.Call<Status>([&] { return Open(config, local); }).Annotate("node");
  }

  void Stop(Nanos drain) {
    if (node_ != nullptr) {
      thread_.Call<void>([&] { return node_->Close(thread_.loop().Now() + drain); });
      thread_.Call<void>([&] { return link_->Close(); });
      thread_.Do([&] {
        node_.reset();
        link_.reset();
        coordinator_.reset();
      });
    }
    thread_.Join();
  }

  bool IsIdle() {
    return thread_.Do([&] { return node_->idle(); });
  }

  void AddMetrics(web::MetricsSnapshot& snapshot) {
    node::NodeStats stats = thread_.Do([&] { return node_->stats(); });
    snapshot.slab_used_bytes = stats.slab_used_bytes;
    snapshot.slab_budget_bytes = stats.slab_budget_bytes;
    snapshot.clients = stats.clients;
    snapshot.uploads_pending = stats.uploads_pending;
    snapshot.uploaded_bytes = stats.bytes_uploaded;
    snapshot.restored_slab_bytes = stats.bytes_restored_slab;
    snapshot.restored_store_bytes = stats.bytes_restored_store;
    snapshot.node_chunks_corrupt = stats.chunks_corrupt;
    snapshot.io_engine = thread_.io().Name();
  }

 private:
  Task<Status> Open(const Config& config, StoreRole* local) {
    Loop& loop = thread_.loop();
    if (local != nullptr) {
      coordinator_ =
          std::make_unique<LoopCoordinator>(loop, local->thread().loop(), local->store());
      link_ = std::make_unique<dataplane::LocalStoreLink>(
          loop, local->thread().loop(), local->store(), local->local_buffers(),
          dataplane::LocalStoreLinkOptions{.progress_timeout = config.node.store_timeout});
    } else {
      auto stub = rpc::CoordinatorStub::Create(loop, config.node.store);
      dataplane::TcpStoreLinkOptions options;
      options.self = rng_.NewId();
      options.description = Description("node");
      options.progress_timeout = config.node.store_timeout;
      options.connect_timeout = config.node.connect_timeout;
      options.seal_timeout = config.node.seal_timeout;
      link_ = std::make_unique<RemoteStoreLink>(thread_.io(), *stub, options);
      coordinator_ = std::move(stub);
    }
    node::NodeOptions options;
    options.socket_path = config.node.socket;
    options.slab_directory = config.node.slab_directory;
    options.slab_bytes_max = config.node.slab_bytes;
    options.restore_ring_chunks = config.node.restore_ring_chunks;
    options.upload_streams_max = config.node.upload_streams;
    options.store_timeout = config.node.store_timeout;
    options.upload_retry_max = config.node.upload_retry;
    options.idle_exit = config.node.idle_exit;
    REPRISE_CO_ASSIGN_STATUS(
        node_, co_await node::Node::Start(thread_.io(), rng_, options, *coordinator_, *link_));
    LogInfo("serving training processes at {}, slab in {}", options.socket_path,
            options.slab_directory);
    co_return OkStatus();
  }

  LoopThread thread_;
  Rng rng_{RandomSeed()};
  std::unique_ptr<lifecycle::CoordinatorApi> coordinator_;
  std::unique_ptr<dataplane::StoreLink> link_;
  std::unique_ptr<node::Node> node_;
};

class DaemonImpl final : public Daemon {
 public:
  explicit DaemonImpl(const Config& config) : config_(config) {}
  ~DaemonImpl() override { Stop(); }

  Status Start() {
    if (config_.HasStore()) {
      store_ = std::make_unique<StoreRole>();
      REPRISE_RETURN_IF_ERROR(store_->Start(config_));
      addresses_.control = store_->control_address();
      addresses_.data = store_->data_address();
    }
    if (config_.HasNode()) {
      node_ = std::make_unique<NodeRole>();
      REPRISE_RETURN_IF_ERROR(node_->Start(config_, store_.get()));
      addresses_.socket = config_.node.socket;
    }
    if (!config_.web.listen.empty()) {
      REPRISE_ASSIGN_STATUS(
          web_, web::HttpServer::Start(config_.web.listen,
                                       {[this] { return Health(); }, [this] { return Health(); },
                                        [this] { return Metrics(); }}));
      addresses_.web = web_->address();
    }
    return OkStatus();
  }

  const DaemonAddresses& addresses() const override { return addresses_; }
  Status Health() override { return store_ == nullptr ? OkStatus() : store_->Health(); }
  bool IsIdle() override { return node_ != nullptr && node_->IsIdle(); }

  void Stop() override {
    web_.reset();  // its handlers use the roles
    if (node_ != nullptr) node_->Stop(config_.shutdown_timeout);
    if (store_ != nullptr) store_->Stop();
    node_.reset();
    store_.reset();
  }

 private:
  std::string Metrics() {
    web::MetricsSnapshot snapshot;
    snapshot.version = REPRISE_VERSION;
    snapshot.role = config_.role;
    snapshot.io_reason = config_.io.engine;
    if (node_ != nullptr) {
      snapshot.has_node = true;
      node_->AddMetrics(snapshot);
    }
    if (store_ != nullptr) {
      snapshot.has_store = true;
      store_->AddMetrics(snapshot);
    }
    return web::RenderMetrics(snapshot);
  }

  Config config_;
  DaemonAddresses addresses_;
  std::unique_ptr<StoreRole> store_;
  std::unique_ptr<NodeRole> node_;
  std::unique_ptr<web::HttpServer> web_;
};

}  // namespace

Result<std::unique_ptr<Daemon>> Daemon::Start(const Config& config) {
  auto daemon = std::make_unique<DaemonImpl>(config);
  REPRISE_TRY(daemon->Start());
  return daemon;
}

}  // namespace reprise
