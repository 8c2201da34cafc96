#include "reprise/client.h"

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <utility>

#include "client/device/host_engine.h"
#include "client/items.h"
#include "client/restore/reader.h"
#include "client/session/embedded.h"
#include "client/session/identity.h"
#include "client/session/session.h"
#include "client/snapshot/snapshot.h"
#include "core/base/log.h"

namespace reprise {
namespace {

using client::Deadline;

constexpr char kSocketDefault[] = "/run/reprise/node.sock";

Nanos NanosOf(double seconds, double fallback) {
  if (!(seconds > 0) || seconds > 1e9) seconds = fallback;
  return std::chrono::duration_cast<Nanos>(std::chrono::duration<double>(seconds));
}

Status CheckOptions(const ClientOptions& options) {
  if (options.world == 0 || options.world > limits::kWorldMax || options.rank >= options.world) {
    return FailStatus(Code::kInvalidArgument,
                      "rank {} of a world of {}: ranks are 0..world-1, at "
                      "most {}",
                      options.rank, options.world, limits::kWorldMax);
  }
  return OkStatus();
}

// Where the daemon of `target` listens; starts it in embedded mode.
Result<std::string> SocketOf(const client::Target& target, const ClientOptions& options) {
  if (target.embedded) {
    // A daemon that recovers a large directory takes longer than a connect.
    Nanos patience = NanosOf(options.connect_timeout_s, 10) + std::chrono::seconds(20);
    return client::EnsureEmbeddedDaemon(
        {.directory = target.directory, .daemon = options.daemon, .world = options.world},
        Deadline::After(patience));
  }
  if (!options.socket.empty()) return options.socket;
  std::string named = client::Environment("REPRISE_SOCKET");
  return named.empty() ? kSocketDefault : named;
}

std::string TextOfSkipped(const std::vector<format::SkippedCheckpoint>& skipped) {
  std::string text;
  for (const format::SkippedCheckpoint& one : skipped) {
    text += fmt::format("{}step {} (epoch {}): {}", text.empty() ? "" : "; ", one.key.step,
                        one.key.epoch, one.reason);
  }
  return text;
}

}  // namespace

struct Client::Impl {
  ClientOptions options;
  client::Target target;
  client::Identity identity;
  uint64_t fork_generation = client::ForkGeneration();
  std::unique_ptr<client::Session> session;
  std::unique_ptr<client::CopyEngine> engine;
  std::unique_ptr<client::RestoreRing> ring;
  std::unique_ptr<client::Saver> saver;
  std::mutex mutex;
  std::optional<RunInfo> run;  // guarded by mutex
  std::atomic<bool> saved{false};

  Status Check() const {
    if (client::IsForkChild(fork_generation)) {
      return Status(Code::kFailedPrecondition, client::kForkMessage);
    }
    return OkStatus();
  }
  Status CheckRegistered() {
    REPRISE_RETURN_IF_ERROR(Check());
    std::lock_guard lock(mutex);
    if (run.has_value()) return OkStatus();
    return Status(Code::kFailedPrecondition, "this rank is in no run yet: call Register first");
  }
};

Client::Client(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Client::~Client() {
  // In a child every part's destructor does nothing, and memory goes with the process.
  if (impl_ != nullptr && client::IsForkChild(impl_->fork_generation)) {
    static_cast<void>(impl_.release());
  }
}

Result<std::unique_ptr<Client>> Client::Open(const ClientOptions& options) {
  // Inside a trainer only what someone must act on is printed.
  if (std::getenv("REPRISE_LOG") == nullptr) SetLogLevel(LogLevel::kWarn);
  REPRISE_TRY(CheckOptions(options));
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  REPRISE_ASSIGN(impl->target, client::ParseUri(options.uri));
  impl->identity = client::MakeIdentity(options.launcher, options.rank, options.world);
  client::Session::Options session;
  REPRISE_ASSIGN(session.socket_path, SocketOf(impl->target, options));
  session.hello.peer = impl->identity.process;
  session.hello.description = impl->identity.description;
  session.connect_timeout = NanosOf(options.connect_timeout_s, 10);
  REPRISE_ASSIGN(impl->session, client::Session::Open(std::move(session)));
  impl->engine = std::make_unique<client::HostEngine>(options.copy_threads);
  impl->ring = std::make_unique<client::RestoreRing>(*impl->session);
  client::Saver::Options saver;
  saver.stall_budget = NanosOf(options.stall_budget_s, 10);
  saver.orphan_patience = saver.stall_budget / 2;
  impl->saver = std::make_unique<client::Saver>(*impl->session, *impl->engine, saver);
  return std::unique_ptr<Client>(new Client(std::move(impl)));
}

Result<RunInfo> Client::Register(double timeout_s) {
  REPRISE_TRY(impl_->Check());
  wire::Register registration;
  registration.tenant = impl_->target.tenant;
  registration.job = impl_->target.job;
  registration.rank = impl_->options.rank;
  registration.world = impl_->options.world;
  registration.process = impl_->identity.process;
  registration.launcher = impl_->identity.launcher;
  registration.host = impl_->identity.host;
  registration.takeover = impl_->options.takeover;
  Deadline deadline = Deadline::AfterSeconds(timeout_s);
  bool bounded = !deadline.never();
  // The daemon answers at its deadline, naming the missing ranks; ours is only for a silent daemon.
  registration.timeout_ms = static_cast<uint64_t>(std::ceil((bounded ? timeout_s : 1e8) * 1000));
  Deadline patience = bounded ? Deadline::AfterSeconds(timeout_s + 2) : deadline;
  REPRISE_ASSIGN(auto answer, impl_->session->Ask<wire::Registered>(
                                  registration, patience, "all ranks of the run to register"));
  RunInfo run{.job = answer.job,
              .epoch = answer.epoch,
              .resume = answer.resume,
              .skipped = TextOfSkipped(answer.skipped)};
  registration.takeover = false;
  registration.epoch = answer.epoch;
  impl_->saver->SetRun({impl_->target.tenant, impl_->target.job, answer.epoch});
  impl_->session->SetReplay(std::move(registration));
  std::lock_guard lock(impl_->mutex);
  impl_->run = run;
  return run;
}

Result<Ticket> Client::Snapshot(uint64_t step, std::span<const PieceView> pieces,
                                const SaveOptions& options) {
  REPRISE_TRY(impl_->CheckRegistered());
  REPRISE_TRY(client::CheckMetadata(options.metadata));
  if (options.keep.every != 0 && options.keep.last == 0) {
    return Error(
        Code::kInvalidArgument,
        "keep.every without keep.last would keep everything: say how many of the newest stay");
  }
  impl_->saved.store(true, std::memory_order_relaxed);
  REPRISE_ASSIGN(auto save, impl_->saver->Start(step, pieces, options));
  return Ticket(std::move(save));
}

Status Client::Skip(uint64_t step, std::string_view reason) {
  REPRISE_RETURN_IF_ERROR(impl_->CheckRegistered());
  return impl_->saver->Skip(step, reason);
}

Result<std::unique_ptr<Checkpoint>> Client::OpenCheckpoint(std::optional<uint64_t> step,
                                                           std::optional<uint64_t> epoch,
                                                           double timeout_s) {
  REPRISE_TRY(impl_->Check());
  client::ReaderOptions options{.tenant = impl_->target.tenant,
                                .job = impl_->target.job,
                                .step = step,
                                .epoch = epoch,
                                .rank = impl_->options.rank,
                                .world = impl_->options.world};
  if (!step.has_value() && !epoch.has_value()) {
    std::lock_guard lock(impl_->mutex);
    if (impl_->run.has_value()) {
      if (!impl_->run->resume.has_value()) {
        return Fail(Code::kNotFound,
                    "job {}/{} has no checkpoint to resume from: this is its first "
                    "run",
                    options.tenant, options.job);
      }
      options.step = impl_->run->resume->step;
      options.epoch = impl_->run->resume->epoch;
    }
  }
  auto reader = client::Reader::Open(*impl_->session, *impl_->engine, *impl_->ring,
                                     std::move(options), Deadline::AfterSeconds(timeout_s));
  if (!reader.has_value()) return Error(std::move(reader).error());
  return std::unique_ptr<Checkpoint>(new Checkpoint(std::move(*reader), impl_->saved));
}

Result<RestoreResult> Client::Restore(const RestoreRequest& request) {
  Deadline deadline = Deadline::AfterSeconds(request.timeout_s);
  REPRISE_ASSIGN(auto checkpoint, OpenCheckpoint(request.step, request.epoch, request.timeout_s));
  double left = -1;
  if (!deadline.never()) left = std::max(0, deadline.poll_ms()) / 1000.0;
  REPRISE_TRY(checkpoint->Read(request.pieces, left));
  return RestoreResult{.key = checkpoint->key(), .stats = checkpoint->stats()};
}

Status Client::Close(double timeout_s) {
  REPRISE_RETURN_IF_ERROR(impl_->Check());
  return impl_->saver->WaitAll(Deadline::AfterSeconds(timeout_s));
}

// ---- Ticket

namespace {
// In a child the save's lock may be held by a thread that does not exist there.
Status CheckTicket(const client::Save& save) {
  if (!client::IsForkChild(save.fork_generation)) return OkStatus();
  return Status(Code::kFailedPrecondition, client::kForkMessage);
}
}  // namespace

Status Ticket::WaitCopied(double timeout_s) {
  REPRISE_RETURN_IF_ERROR(CheckTicket(*save_));
  return save_->WaitCopied(Deadline::AfterSeconds(timeout_s));
}

Status Ticket::Wait(Durability durability, double timeout_s) {
  REPRISE_RETURN_IF_ERROR(CheckTicket(*save_));
  return save_->Wait(durability, Deadline::AfterSeconds(timeout_s));
}

void Ticket::Abort(std::string_view reason) {
  if (CheckTicket(*save_).ok()) save_->Fail(Status(Code::kAborted, std::string(reason)));
}

SaveProgress Ticket::progress() const {
  Status usable = CheckTicket(*save_);
  if (!usable.ok()) return {.phase = 5, .status = std::move(usable), .step = save_->step};
  return save_->progress();
}

// ---- Checkpoint

struct Checkpoint::Impl {
  std::unique_ptr<client::Reader> reader;
  std::string items;
  // While this process saves, its own slots may be overwritten at any moment.
  const std::atomic<bool>* saves = nullptr;
};

Checkpoint::Checkpoint(std::unique_ptr<client::Reader> reader, const std::atomic<bool>& saves)
    : impl_(std::make_unique<Impl>()) {
  impl_->reader = std::move(reader);
  impl_->saves = &saves;
}

Checkpoint::~Checkpoint() = default;

CheckpointKey Checkpoint::key() const { return impl_->reader->manifest().key; }
uint32_t Checkpoint::world() const { return impl_->reader->manifest().world; }
const std::string& Checkpoint::metadata() const { return impl_->reader->manifest().metadata; }

const std::string& Checkpoint::items_json() {
  if (impl_->items.empty()) {
    impl_->items = client::ItemsJson(impl_->reader->manifest(), impl_->reader->saved());
  }
  return impl_->items;
}

Status Checkpoint::Read(std::span<const PieceView> pieces, double timeout_s) {
  Deadline deadline = Deadline::AfterSeconds(timeout_s);
  bool map_slots = !impl_->saves->load(std::memory_order_relaxed);
  Status status = impl_->reader->Read(pieces, map_slots, deadline);
  bool saved_meanwhile = map_slots && impl_->saves->load(std::memory_order_relaxed);
  if (!status.ok() || !saved_meanwhile) return status;
  // A save that began during the read may have overwritten bytes between digest and copy.
  return impl_->reader->Read(pieces, false, deadline);
}

ReadStats Checkpoint::stats() const { return impl_->reader->stats(); }

}  // namespace reprise
