// The C interface as a careless caller uses it: calls in any order, on handles that may be NULL or not
// open, with structs of odd sizes, odd counts, shapes, strides, names and timeouts, against a daemon
// that speaks the protocol (tests/unit/client/fake_daemon.h).
//
// What a caller must not do is left out: pointers are NULL or point to memory of the size that the
// struct says, and a handle is not used after it was freed. Every failure has a text. What was saved
// and is read back is what was there.
#include "reprise/c.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <string>

#include "core/base/log.h"
#include "core/base/random.h"
#include "reprise/status.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"
#include "tests/unit/client/fake_daemon.h"

namespace reprise {
namespace {

constexpr size_t kCallsMax = 24;
constexpr size_t kArenaBytes = 16 * 1024;
constexpr size_t kStructBytesMax = 4096;

client::test::FakeDaemon& Daemon() {
  static auto* daemon = [] {
    SetLogLevel(LogLevel::kError);
    return new client::test::FakeDaemon;
  }();
  return *daemon;
}

// An array of structs of `stride` bytes each, in memory of exactly that size.
class Pieces {
 public:
  Pieces(fuzz::Script& script, std::array<uint8_t, kArenaBytes>& arena)
      : script_(script), arena_(arena) {
    count_ = script.Below(5);
    stride_ = static_cast<uint32_t>(sizeof(reprise_piece));
    if (script.Chance(40)) stride_ += static_cast<uint32_t>(script.Below(32) * 8);
    if (script.Chance(10)) stride_ = static_cast<uint32_t>(script.Odd());
    size_t bytes = std::min<size_t>(stride_, kStructBytesMax) + sizeof(reprise_piece);
    memory_ = std::make_unique<uint64_t[]>((count_ + 1) * bytes / 8 + 1);
    for (size_t i = 0; i < count_; ++i) Fill(At(i));
  }

  const reprise_piece* data() const { return script_is_null_ ? nullptr : AtConst(0); }
  const reprise_piece& at(size_t i) const { return *AtConst(i); }
  size_t count() const { return count_; }
  // More than the limit, of which one exists: refused before the second is looked at.
  size_t OddCount() const { return count_ == 0 ? 0 : (size_t{1} << 40) + count_; }
  void Forget() { script_is_null_ = true; }

 private:
  size_t Step() const { return std::min<size_t>(stride_, kStructBytesMax); }
  reprise_piece* At(size_t i) {
    return reinterpret_cast<reprise_piece*>(reinterpret_cast<uint8_t*>(memory_.get()) +
                                            i * Step() / 8 * 8);
  }
  const reprise_piece* AtConst(size_t i) const { return const_cast<Pieces*>(this)->At(i); }

  uint64_t Number() { return script_.Chance(240) ? script_.Below(7) : script_.Odd(); }
  const uint64_t* Numbers(size_t count) {
    auto& numbers = numbers_.emplace_back(std::make_unique<uint64_t[]>(count + 1));
    for (size_t i = 0; i < count; ++i) numbers[i] = Number();
    return numbers.get();
  }
  const char* Name() {
    if (script_.Chance(6)) return nullptr;
    std::string name = script_.Chance(230) ? std::string(1, static_cast<char>('a' + names_.size()))
                                           : script_.Text();
    names_.push_back(std::make_unique<std::string>(std::move(name)));
    return names_.back()->c_str();
  }

  void Fill(reprise_piece* piece) {
    reprise_piece made{};
    made.struct_size = script_.Chance(250) ? stride_ : static_cast<uint32_t>(script_.Odd());
    made.dtype = script_.Chance(230) ? 2 : script_.Byte();
    made.scope = script_.Chance(230) ? static_cast<uint8_t>(1 + script_.Below(3)) : script_.Byte();
    made.world_policy = script_.Chance(240) ? 1 : script_.Byte();
    made.flags = script_.Chance(160) ? 0 : script_.Byte() % 16;
    made.name = Name();
    made.ndim = script_.Chance(240) ? static_cast<uint32_t>(script_.Below(4))
                                    : static_cast<uint32_t>(script_.Odd());
    made.box_count = script_.Chance(200) ? 1 : static_cast<uint32_t>(script_.Odd() % 5000);
    // Arrays over the limits are refused unread.
    size_t axes = made.ndim <= 16 ? made.ndim : 0;
    size_t boxes = made.box_count <= 4096 ? made.box_count : 0;
    made.global_shape = script_.Chance(8) ? nullptr : Numbers(axes);
    made.boxes = script_.Chance(8) ? nullptr : WholeOrNumbers(made, axes, boxes);
    made.flat_begin = Number();
    made.flat_end = made.flat_begin + Number();
    size_t at = script_.Chance(200) ? used_ % kArenaBytes : script_.Number(2) % kArenaBytes;
    uint64_t wanted = script_.Chance(220) ? BytesOf(made) : script_.Byte();
    made.data_bytes = std::min<uint64_t>(wanted, kArenaBytes - at);
    made.data = script_.Chance(6) ? nullptr : arena_.data() + at;
    used_ += made.data_bytes;
    made.source_rank = script_.Chance(240) ? -1 : static_cast<int32_t>(script_.Odd());
    std::memcpy(piece, &made, std::min(sizeof(made), std::max<size_t>(Step(), 8)));
  }
  // One box: mostly the whole tensor.
  const uint64_t* WholeOrNumbers(const reprise_piece& piece, size_t axes, size_t boxes) {
    if (boxes != 1 || piece.global_shape == nullptr || script_.Chance(60)) {
      return Numbers(2 * axes * boxes);
    }
    auto& numbers = numbers_.emplace_back(std::make_unique<uint64_t[]>(2 * axes + 1));
    std::copy_n(piece.global_shape, axes, numbers.get() + axes);
    return numbers.get();
  }
  static uint64_t BytesOf(const reprise_piece& piece) {
    if ((piece.flags & REPRISE_PIECE_FLAT) != 0) return piece.flat_end - piece.flat_begin;
    if (piece.ndim > 16 || piece.box_count > 4096 || piece.boxes == nullptr) return 0;
    uint64_t total = 0;
    for (uint32_t box = 0; box < piece.box_count; ++box) {
      uint64_t elements = DtypeBytes(static_cast<Dtype>(piece.dtype));
      const uint64_t* extents = piece.boxes + (2 * box + 1) * piece.ndim;
      for (uint32_t axis = 0; axis < piece.ndim; ++axis) elements *= extents[axis];
      total += elements;
    }
    return total;
  }

  fuzz::Script& script_;
  std::array<uint8_t, kArenaBytes>& arena_;
  size_t count_ = 0;
  uint32_t stride_ = 0;
  size_t used_ = 0;
  bool script_is_null_ = false;
  std::unique_ptr<uint64_t[]> memory_;
  std::vector<std::unique_ptr<uint64_t[]>> numbers_;
  std::vector<std::unique_ptr<std::string>> names_;
};

class Caller {
 public:
  explicit Caller(fuzz::Script& script) : script_(script) {
    for (size_t i = 0; i < arena_.size(); ++i) arena_[i] = static_cast<uint8_t>(i * 131 + i / 251);
  }
  ~Caller() {
    ReleaseAll();
    char text[32];
    reprise_close(client_, 0.01, text, script_.Below(sizeof(text)));
  }

  void Open() {
    reprise_options options{};
    options.struct_size = Size(sizeof(options));
    std::string uri = script_.Chance(230) ? "reprise://tenant/job" : script_.Text();
    std::string socket = Daemon().socket_path();
    std::string text = script_.Chance(200) ? "fuzz" : script_.Text();
    // Never one that starts a daemon.
    if (uri.starts_with("file")) uri = "x";
    options.uri = script_.Chance(4) ? nullptr : uri.c_str();
    options.rank = script_.Chance(245) ? 0 : static_cast<uint32_t>(script_.Odd());
    options.world = script_.Chance(245) ? 1 : static_cast<uint32_t>(script_.Odd());
    options.launcher = script_.Chance(10) ? nullptr : text.c_str();
    options.socket = socket.c_str();
    options.copy_threads = script_.Chance(250) ? 1 : script_.Byte() % 65;
    options.connect_timeout_s = Seconds();
    options.stall_budget_s = script_.Chance(230) ? 1 : Seconds();
    reprise_code code = reprise_open(script_.Chance(2) ? nullptr : &options, &client_);
    Check(code, reprise_error, client_);
    if (!script_.Chance(8)) Register();
  }

  void Call() {
    switch (script_.Below(12)) {
      case 0:
      case 1: return Save();
      case 2:
      case 3: return WaitForOne();
      case 4: return AbortOne();
      case 5: return GetState();
      case 6: return ReleaseOne();
      case 7: return SkipStep();
      case 8: return OpenReader();
      case 9: return Read();
      case 10: return LookAtReader();
      default: return Register();
    }
  }

 private:
  // Every code has a name, and every failure a text. Asked for after the call that returned `code`.
  template <typename H>
  void Check(reprise_code code, const char* (*error_of)(const H*), const H* handle) {
    const char* error = error_of(handle);
    REPRISE_CHECK(std::string_view(reprise_code_name(code)) != "UNKNOWN_CODE");
    REPRISE_CHECK(error != nullptr && (code == 0 || error[0] != '\0'));
    REPRISE_CHECK(code != static_cast<reprise_code>(Code::kInternal), error);
  }
  uint32_t Size(size_t right) {
    return script_.Chance(250) ? static_cast<uint32_t>(right)
                               : static_cast<uint32_t>(script_.Odd() % right);
  }
  // Of waits that end by themselves.
  double Seconds() {
    constexpr double kOdd[] = {1, 1, 1, 0, 1e-9, 1e18, std::numeric_limits<double>::infinity(), 5};
    return kOdd[script_.Below(std::size(kOdd))];
  }
  double Wait() { return script_.Chance(200) ? 0.002 : 0; }
  uint8_t Level() {
    return script_.Chance(220) ? static_cast<uint8_t>(1 + script_.Below(4)) : script_.Byte();
  }
  reprise_save* AnySave() {
    return saves_.empty() ? nullptr : saves_[script_.Below(saves_.size())];
  }
  void Register() {
    reprise_run run{};
    run.struct_size = Size(sizeof(run));
    reprise_code code = reprise_register(client_, 1, script_.Chance(4) ? nullptr : &run);
    Check(code, reprise_error, client_);
  }
  void Save() {
    Pieces pieces(script_, arena_);
    if (script_.Chance(4)) pieces.Forget();
    std::string metadata = script_.Chance(220) ? R"({"a":1})" : script_.Text();
    reprise_save_options options{};
    options.struct_size = Size(sizeof(options));
    options.metadata = script_.Chance(100) ? nullptr : metadata.c_str();
    options.durability = Level();
    options.keep_last = script_.Below(3) == 0 ? 1 : 0;
    options.keep_every = script_.Chance(10) ? script_.Odd() : 0;
    size_t count = script_.Chance(4) ? pieces.OddCount() : pieces.count();
    reprise_save* save = nullptr;
    reprise_code code = reprise_save_start(
        client_, script_.Chance(240) ? ++step_ : script_.Odd(), pieces.data(), count,
        script_.Chance(60) ? nullptr : &options, script_.Chance(2) ? nullptr : &save);
    Check(code, reprise_error, client_);
    REPRISE_CHECK((code == 0) == (save != nullptr));
    if (save == nullptr) return;
    saves_.push_back(save);
    // The memory of the pieces must stay until it was copied; it does, but let most finish.
    if (script_.Chance(200)) {
      reprise_code copied = reprise_save_wait_copied(save, 5);
      Check(copied, reprise_save_error, save);
    }
    if (script_.Chance(100)) ReadBack(save, pieces);
  }
  // A committed save, read into memory that holds something else, is what was saved.
  void ReadBack(reprise_save* save, const Pieces& pieces) {
    if (reprise_save_wait(save, 3, 5) != 0) return;
    reprise_save_state state{};
    state.struct_size = sizeof(state);
    reprise_save_get_state(save, &state);
    reprise_reader* reader = nullptr;
    reprise_code opened =
        reprise_reader_open(client_, static_cast<int64_t>(state.step), -1, 5, &reader);
    Check(opened, reprise_error, client_);
    if (opened != 0) return;
    std::array<uint8_t, kArenaBytes> before = arena_;
    arena_.fill(0);
    reprise_code code = reprise_reader_read(reader, pieces.data(), pieces.count(), 5);
    Check(code, reprise_reader_error, reader);
    if (code == 0) CheckSame(pieces, before);
    arena_ = before;
    reprise_reader_close(reader);
  }
  void CheckSame(const Pieces& pieces, const std::array<uint8_t, kArenaBytes>& before) {
    for (size_t i = 0; i < pieces.count(); ++i) {
      const reprise_piece& piece = pieces.at(i);
      if (piece.data_bytes == 0) continue;
      const uint8_t* saved = before.data() + (static_cast<uint8_t*>(piece.data) - arena_.data());
      REPRISE_CHECK(std::memcmp(piece.data, saved, piece.data_bytes) == 0,
                    "read back other bytes than were saved");
    }
  }
  void WaitForOne() {
    reprise_save* save = AnySave();
    bool copied = script_.Chance(100);
    reprise_code code =
        copied ? reprise_save_wait_copied(save, Wait()) : reprise_save_wait(save, Level(), Wait());
    Check(code, reprise_save_error, save);
  }
  void AbortOne() {
    std::string reason = script_.Text();
    reprise_save_abort(AnySave(), script_.Chance(40) ? nullptr : reason.c_str());
  }
  void GetState() {
    reprise_save* save = AnySave();
    reprise_save_state state{};
    state.struct_size = Size(sizeof(state));
    reprise_save_get_state(save, script_.Chance(4) ? nullptr : &state);
    REPRISE_CHECK(state.phase <= 5);
    REPRISE_CHECK(reprise_save_error(save) != nullptr);
  }
  void ReleaseOne() {
    if (saves_.empty()) return;
    size_t index = script_.Below(saves_.size());
    // What the save still reads lies in the arena, which outlives the client.
    reprise_save_release(saves_[index]);
    saves_.erase(saves_.begin() + static_cast<ptrdiff_t>(index));
  }
  void ReleaseAll() {
    for (reprise_save* save : saves_) reprise_save_release(save);
    reprise_reader_close(reader_);
  }
  void SkipStep() {
    std::string reason = script_.Text();
    uint64_t step = script_.Odd();
    reprise_code code = reprise_skip(client_, step, script_.Chance(40) ? nullptr : reason.c_str());
    Check(code, reprise_error, client_);
  }
  void OpenReader() {
    reprise_reader_close(reader_);
    reader_ = nullptr;
    uint64_t step = script_.Chance(160) ? step_ : script_.Odd();
    uint64_t epoch = script_.Chance(200) ? ~uint64_t{0} : script_.Odd();
    reprise_code code =
        reprise_reader_open(client_, static_cast<int64_t>(step), static_cast<int64_t>(epoch), 1,
                            script_.Chance(2) ? nullptr : &reader_);
    Check(code, reprise_error, client_);
  }
  void Read() {
    Pieces pieces(script_, arena_);
    size_t count = script_.Chance(4) ? pieces.OddCount() : pieces.count();
    reprise_code code = reprise_reader_read(reader_, pieces.data(), count, 1);
    Check(code, reprise_reader_error, reader_);
  }
  void LookAtReader() {
    REPRISE_CHECK(reprise_reader_items(reader_) != nullptr);
    reprise_read_stats stats{};
    stats.struct_size = Size(sizeof(stats));
    reprise_reader_get_stats(reader_, script_.Chance(4) ? nullptr : &stats);
  }

  fuzz::Script& script_;
  std::array<uint8_t, kArenaBytes> arena_{};
  reprise_client* client_ = nullptr;
  std::vector<reprise_save*> saves_;
  reprise_reader* reader_ = nullptr;
  uint64_t step_ = 0;
};

void RunInput(ByteView input) {
  fuzz::Script script(input);
  Caller caller(script);
  caller.Open();
  for (size_t calls = 0; calls < kCallsMax && !script.AtEnd(); ++calls) caller.Call();
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds;
  Rng rng(15);
  // Small numbers are the ordinary choices of most questions above.
  for (int i = 0; i < 24; ++i) {
    Bytes seed(200);
    for (uint8_t& byte : seed) {
      byte = static_cast<uint8_t>(rng.Chance(3, 4) ? 11 + rng.Below(90) : rng.Next());
    }
    seeds.push_back(std::move(seed));
  }
  return seeds;
}

}  // namespace
}  // namespace reprise

REPRISE_FUZZ_TARGET(c_api) = {
    .name = "c_api", .run = reprise::RunInput, .seeds = reprise::Seeds, .input_bytes_max = 512};
