// The C interface over reprise::Client. Arguments are checked here, exceptions end here, and each
// handle remembers the generation it was made in, so that a fork() child is turned away before it
// touches a lock.

#include "reprise/c.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <utility>
#include <vector>

#include "client/session/fork.h"
#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"
#include "reprise/client.h"

namespace {

using reprise::Code;
using reprise::FailStatus;
using reprise::Result;
using reprise::Status;

constexpr size_t kStructBytesMax = 4096;

// What every handle has: its fork generation and the text of its last failure.
class Handle {
 public:
  bool in_child() const { return reprise::client::IsForkChild(generation_); }

  reprise_code Return(const Status& status) {
    std::lock_guard lock(mutex_);
    error_ = status.message();
    return static_cast<reprise_code>(status.code());
  }
  const char* error() const {
    if (in_child()) return reprise::client::kForkMessage;
    std::lock_guard lock(mutex_);
    return Say(error_);
  }
  // A copy for the calling thread, so that another thread's call cannot free it under its reader.
  static const char* Say(std::string message) {
    static thread_local std::string text;
    text = std::move(message);
    return text.c_str();
  }

 private:
  const uint64_t generation_ = reprise::client::ForkGeneration();
  mutable std::mutex mutex_;
  std::string error_;
};

}  // namespace

struct reprise_client : Handle {
  std::shared_ptr<reprise::Client> client;
  std::string skipped;
};
struct reprise_save : Handle {
  explicit reprise_save(reprise::Ticket the_ticket) : ticket(std::move(the_ticket)) {}
  reprise::Ticket ticket;
};
struct reprise_reader : Handle {
  std::shared_ptr<reprise::Client> client;  // outlives the checkpoint, closed or not
  std::unique_ptr<reprise::Checkpoint> checkpoint;
};

namespace {

constexpr auto kChildCode = static_cast<reprise_code>(Code::kFailedPrecondition);
constexpr auto kArgumentCode = static_cast<reprise_code>(Code::kInvalidArgument);

// Runs `body`, which returns a Status, for a live handle.
template <typename H, typename Body>
reprise_code Call(H* handle, Body&& body) {
  if (handle == nullptr) return kArgumentCode;
  if (handle->in_child()) return kChildCode;
  try {
    return handle->Return(body());
  } catch (const std::bad_alloc&) {
    return handle->Return(Status(Code::kResourceExhausted, "out of memory"));
  } catch (const std::exception& error) {
    return handle->Return(Status(Code::kInternal, error.what()));
  }
}

template <typename T>
Status CheckStruct(const T* value, const char* name) {
  if (value == nullptr) return FailStatus(Code::kInvalidArgument, "{} is NULL", name);
  if (value->struct_size < sizeof(T) || value->struct_size > kStructBytesMax) {
    return FailStatus(Code::kInvalidArgument,
                      "{}.struct_size is {}, set it to sizeof (here {}); is the caller built for "
                      "another version of libreprise?",
                      name, value->struct_size, sizeof(T));
  }
  return reprise::OkStatus();
}

std::string TextOf(const char* text) { return text == nullptr ? "" : text; }

Status CheckPiece(const reprise_piece& piece, size_t index) {
  auto bad = [&](std::string_view what) {
    return FailStatus(Code::kInvalidArgument, "piece {} (\"{}\"): {}", index, TextOf(piece.name),
                      what);
  };
  constexpr uint8_t kFlags = REPRISE_PIECE_AUX | REPRISE_PIECE_VOLATILE | REPRISE_PIECE_FLAT;
  if (piece.name == nullptr) return bad("its name is NULL");
  if (reprise::DtypeBytes(static_cast<reprise::Dtype>(piece.dtype)) == 0) {
    return bad("unknown dtype " + std::to_string(piece.dtype));
  }
  if (piece.scope < 1 || piece.scope > 3) return bad("scope must be 1, 2 or 3");
  if (piece.world_policy < 1 || piece.world_policy > 4) return bad("world_policy must be 1 to 4");
  if ((piece.flags & ~kFlags) != 0) return bad("unknown flags");
  if (piece.ndim > reprise::limits::kTensorRankMax) return bad("too many axes");
  if (piece.box_count > reprise::limits::kBoxesPerPieceMax) return bad("too many boxes");
  if (piece.ndim != 0 && piece.global_shape == nullptr) return bad("global_shape is NULL");
  if (piece.ndim != 0 && piece.box_count != 0 && piece.boxes == nullptr)
    return bad("boxes is NULL");
  return reprise::OkStatus();
}

reprise::PieceView ViewOf(const reprise_piece& piece) {
  bool flat = (piece.flags & REPRISE_PIECE_FLAT) != 0;
  size_t numbers = flat ? 0 : size_t{2} * piece.ndim * piece.box_count;
  return {.name = piece.name,
          .dtype = static_cast<reprise::Dtype>(piece.dtype),
          .scope = static_cast<reprise::Scope>(piece.scope),
          .world_policy = static_cast<reprise::WorldPolicy>(piece.world_policy),
          .auxiliary = (piece.flags & REPRISE_PIECE_AUX) != 0,
          .is_volatile = (piece.flags & REPRISE_PIECE_VOLATILE) != 0,
          .flat = flat,
          .global_shape = {piece.global_shape, piece.ndim},
          .boxes = {piece.boxes, numbers},
          .box_count = flat ? 0 : piece.box_count,
          .flat_begin = piece.flat_begin,
          .flat_end = piece.flat_end,
          .data = piece.data,
          .data_bytes = piece.data_bytes,
          .source_rank = piece.source_rank};
}

// The caller's array may consist of larger structs than ours: struct_size is its stride.
Result<std::vector<reprise::PieceView>> ViewsOf(const reprise_piece* pieces, size_t count) {
  std::vector<reprise::PieceView> views;
  if (count == 0) return views;
  REPRISE_TRY(CheckStruct(pieces, "pieces[0]"));
  if (count > reprise::limits::kPiecesPerLayoutMax) {
    return reprise::Fail(Code::kInvalidArgument, "{} pieces are over the limit of {}", count,
                         reprise::limits::kPiecesPerLayoutMax);
  }
  const size_t stride = pieces->struct_size;
  if (stride % alignof(reprise_piece) != 0) {
    return reprise::Fail(Code::kInvalidArgument,
                         "pieces[0].struct_size is {}, which is no size of a "
                         "struct",
                         stride);
  }
  views.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    const auto& piece = *reinterpret_cast<const reprise_piece*>(
        reinterpret_cast<const uint8_t*>(pieces) + i * stride);
    if (piece.struct_size != stride) {
      return reprise::Fail(Code::kInvalidArgument,
                           "pieces[{}].struct_size is {}, that of the first "
                           "is {}",
                           i, piece.struct_size, stride);
    }
    REPRISE_TRY(CheckPiece(piece, i));
    views.push_back(ViewOf(piece));
  }
  return views;
}

Result<reprise::Durability> DurabilityOf(uint8_t number) {
  if (number < 1 || number > 4) {
    return reprise::Fail(Code::kInvalidArgument, "durability is {}: use 1 (local) to 4 (object)",
                         number);
  }
  return static_cast<reprise::Durability>(number);
}

Result<reprise::Client*> ClientOf(const reprise_client& handle) {
  if (handle.client != nullptr) return handle.client.get();
  return reprise::Fail(Code::kFailedPrecondition, "this client did not open");
}

Status Open(const reprise_options* options, reprise_client& handle) {
  REPRISE_RETURN_IF_ERROR(CheckStruct(options, "options"));
  if (options->uri == nullptr) return Status(Code::kInvalidArgument, "options.uri is NULL");
  REPRISE_ASSIGN_STATUS(auto client,
                        reprise::Client::Open({.uri = options->uri,
                                               .rank = options->rank,
                                               .world = options->world,
                                               .launcher = TextOf(options->launcher),
                                               .socket = TextOf(options->socket),
                                               .daemon = TextOf(options->daemon),
                                               .takeover = options->takeover != 0,
                                               .copy_threads = options->copy_threads,
                                               .connect_timeout_s = options->connect_timeout_s,
                                               .stall_budget_s = options->stall_budget_s}));
  handle.client = std::move(client);
  return reprise::OkStatus();
}

}  // namespace

extern "C" {

const char* reprise_version(void) { return REPRISE_VERSION; }

const char* reprise_code_name(reprise_code code) {
  if (code < 0 || code > UINT8_MAX) return "UNKNOWN_CODE";
  // Names are string literals, hence terminated.
  return reprise::CodeName(static_cast<Code>(code)).data();
}

reprise_code reprise_open(const reprise_options* options, reprise_client** client) {
  if (client == nullptr) return kArgumentCode;
  *client = new (std::nothrow) reprise_client;
  if (*client == nullptr) return static_cast<reprise_code>(Code::kResourceExhausted);
  return Call(*client, [&] { return Open(options, **client); });
}

const char* reprise_error(const reprise_client* client) {
  return client == nullptr ? "the client handle is NULL" : client->error();
}

reprise_code reprise_close(reprise_client* client, double timeout_s, char* error_text,
                           size_t error_size) {
  if (client == nullptr) return 0;
  reprise_code code = Call(client, [&] {
    return client->client == nullptr ? reprise::OkStatus() : client->client->Close(timeout_s);
  });
  if (error_text != nullptr && error_size != 0) {
    std::string text = code == 0 ? "" : client->error();
    size_t length = std::min(text.size(), error_size - 1);
    std::memcpy(error_text, text.data(), length);
    error_text[length] = '\0';
  }
  // In a child the parts are left alone: their threads and locks are the parent's.
  if (!client->in_child()) delete client;
  return code;
}

reprise_code reprise_register(reprise_client* client, double timeout_s, reprise_run* run) {
  return Call(client, [&]() -> Status {
    REPRISE_RETURN_IF_ERROR(CheckStruct(run, "run"));
    REPRISE_ASSIGN_STATUS(reprise::Client * open, ClientOf(*client));
    REPRISE_ASSIGN_STATUS(reprise::RunInfo info, open->Register(timeout_s));
    client->skipped = info.skipped;
    run->has_checkpoint = info.resume.has_value();
    run->epoch = info.epoch;
    run->resume_epoch = info.resume.has_value() ? info.resume->epoch : 0;
    run->resume_step = info.resume.has_value() ? info.resume->step : 0;
    run->skipped = client->skipped.c_str();
    return reprise::OkStatus();
  });
}

reprise_code reprise_save_start(reprise_client* client, uint64_t step, const reprise_piece* pieces,
                                size_t piece_count, const reprise_save_options* options,
                                reprise_save** save) {
  if (save != nullptr) *save = nullptr;
  return Call(client, [&]() -> Status {
    if (save == nullptr) return Status(Code::kInvalidArgument, "save is NULL");
    REPRISE_ASSIGN_STATUS(reprise::Client * open, ClientOf(*client));
    reprise::SaveOptions save_options;
    if (options != nullptr) {
      REPRISE_RETURN_IF_ERROR(CheckStruct(options, "options"));
      save_options.metadata = TextOf(options->metadata);
      REPRISE_ASSIGN_STATUS(save_options.durability, DurabilityOf(options->durability));
      save_options.keep = {.last = options->keep_last, .every = options->keep_every};
    }
    REPRISE_ASSIGN_STATUS(auto views, ViewsOf(pieces, piece_count));
    REPRISE_ASSIGN_STATUS(auto ticket, open->Snapshot(step, views, save_options));
    *save = new reprise_save(std::move(ticket));
    return reprise::OkStatus();
  });
}

reprise_code reprise_save_wait_copied(reprise_save* save, double timeout_s) {
  return Call(save, [&] { return save->ticket.WaitCopied(timeout_s); });
}

reprise_code reprise_save_wait(reprise_save* save, uint8_t durability, double timeout_s) {
  return Call(save, [&]() -> Status {
    REPRISE_ASSIGN_STATUS(reprise::Durability level, DurabilityOf(durability));
    return save->ticket.Wait(level, timeout_s);
  });
}

void reprise_save_abort(reprise_save* save, const char* reason) {
  static_cast<void>(Call(save, [&] {
    save->ticket.Abort(reason == nullptr ? "aborted by the caller" : reason);
    return reprise::OkStatus();
  }));
}

const char* reprise_save_error(const reprise_save* save) {
  if (save == nullptr) return "the save handle is NULL";
  // How the save itself failed counts as much as how a call did.
  const char* error = save->error();
  return *error == '\0' ? save->Say(save->ticket.progress().status.message()) : error;
}

void reprise_save_get_state(const reprise_save* save, reprise_save_state* state) {
  if (save == nullptr || !CheckStruct(state, "state").ok()) return;
  reprise::SaveProgress progress = save->ticket.progress();
  state->phase = progress.phase;
  state->code = static_cast<reprise_code>(progress.status.code());
  state->step = progress.step;
  state->bytes = progress.bytes;
  state->start_ms = progress.start_ms;
  state->copied_ms = progress.copied_ms;
  state->local_ms = progress.local_ms;
  state->committed_ms = progress.committed_ms;
}

void reprise_save_release(reprise_save* save) { delete save; }

reprise_code reprise_skip(reprise_client* client, uint64_t step, const char* reason) {
  return Call(client, [&]() -> Status {
    REPRISE_ASSIGN_STATUS(reprise::Client * open, ClientOf(*client));
    return open->Skip(step, reason == nullptr ? "no reason given" : reason);
  });
}

reprise_code reprise_reader_open(reprise_client* client, int64_t step, int64_t epoch,
                                 double timeout_s, reprise_reader** reader) {
  if (reader != nullptr) *reader = nullptr;
  return Call(client, [&]() -> Status {
    if (reader == nullptr) return Status(Code::kInvalidArgument, "reader is NULL");
    REPRISE_ASSIGN_STATUS(reprise::Client * open, ClientOf(*client));
    std::optional<uint64_t> wanted_step;
    std::optional<uint64_t> wanted_epoch;
    if (step >= 0) wanted_step = static_cast<uint64_t>(step);
    if (epoch >= 0) wanted_epoch = static_cast<uint64_t>(epoch);
    REPRISE_ASSIGN_STATUS(auto checkpoint,
                          open->OpenCheckpoint(wanted_step, wanted_epoch, timeout_s));
    auto handle = std::make_unique<reprise_reader>();
    handle->client = client->client;
    handle->checkpoint = std::move(checkpoint);
    *reader = handle.release();
    return reprise::OkStatus();
  });
}

const char* reprise_reader_items(const reprise_reader* reader) {
  if (reader == nullptr || reader->in_child()) return "";
  try {
    return reader->checkpoint->items_json().c_str();
  } catch (const std::exception&) {
    return "";
  }
}

reprise_code reprise_reader_read(reprise_reader* reader, const reprise_piece* targets,
                                 size_t target_count, double timeout_s) {
  return Call(reader, [&]() -> Status {
    REPRISE_ASSIGN_STATUS(auto views, ViewsOf(targets, target_count));
    return reader->checkpoint->Read(views, timeout_s);
  });
}

void reprise_reader_get_stats(const reprise_reader* reader, reprise_read_stats* stats) {
  if (reader == nullptr || reader->in_child() || !CheckStruct(stats, "stats").ok()) return;
  reprise::ReadStats read = reader->checkpoint->stats();
  stats->bytes_slab = read.bytes_slab;
  stats->bytes_peer = read.bytes_peer;
  stats->bytes_ram = read.bytes_ram;
  stats->bytes_nvme = read.bytes_nvme;
  stats->bytes_object = read.bytes_object;
  stats->chunks_corrupt = read.chunks_corrupt;
  stats->plan_ms = read.plan_ms;
  stats->read_ms = read.read_ms;
}

const char* reprise_reader_error(const reprise_reader* reader) {
  return reader == nullptr ? "the reader handle is NULL" : reader->error();
}

void reprise_reader_close(reprise_reader* reader) {
  if (reader != nullptr && !reader->in_child()) delete reader;
}

}  // extern "C"
