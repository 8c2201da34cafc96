#include "server/journal/recovery.h"

#include <algorithm>
#include <optional>

#include "core/base/check.h"
#include "core/base/limits.h"
#include "core/base/log.h"

namespace reprise::journal {
namespace {

constexpr uint64_t kSlot = limits::kJournalSlotBytes;
alignas(limits::kIoAlignment) constexpr std::array<uint8_t, kSlot> kZeroSlot{};

enum class SlotState : uint8_t {
  kZero,        // never written
  kIntact,      // decodes, and belongs where it lies
  kDamaged,     // anything else: torn, rotten, foreign, misdirected
  kUnreadable,  // the device failed, or the file ends before it
};

struct ParsedSlot {
  SlotState state = SlotState::kZero;
  uint64_t seq = 0;
  Digest previous;
  Digest chain;
  ByteView bytes;
  bool intact() const { return state == SlotState::kIntact; }
};

class Planner {
 public:
  Planner(const std::array<RingImage, 2>& images, const Options& options, const Mark& applied)
      : images_(images),
        options_(options),
        applied_(applied),
        slots_(options.slot_count),
        accepted_(options.slot_count) {}

  Result<RecoveryPlan> Run() {
    for (size_t copy : {0, 1}) REPRISE_TRY(ParseCopy(copy));
    REPRISE_TRY(CheckReach());
    REPRISE_TRY(CheckIndexNotAhead());
    REPRISE_TRY(WalkChain());
    if (!options_.mutations.truncate_at_rot) {
      REPRISE_TRY(CheckNothingBeyond());
      REPRISE_TRY(CheckNeverWrittenPart());
    }
    if (!options_.mutations.skip_repair) PlanRewrites();
    return std::move(plan_);
  }

 private:
  uint32_t PositionOf(uint64_t seq) const { return static_cast<uint32_t>(seq % slots_); }
  const ParsedSlot& At(size_t copy, uint64_t seq) const { return parsed_[copy][PositionOf(seq)]; }
  std::string Names() const { return images_[0].name + " and " + images_[1].name; }

  Status ParseCopy(size_t copy) {
    const RingImage& image = images_[copy];
    for (uint32_t position = 0; position < slots_; ++position) {
      ParsedSlot slot;
      slot.bytes = image.bytes.view().subspan(position * kSlot, kSlot);
      if (image.unreadable[position]) {
        slot.state = SlotState::kUnreadable;
      } else if (std::ranges::any_of(slot.bytes, [](uint8_t byte) { return byte != 0; })) {
        Result<format::Slot> decoded = format::DecodeSlot(slot.bytes, options_.store);
        if (!decoded.has_value() && decoded.error().code() == Code::kUnimplemented) {
          return decoded.error().Annotate("journal copy " + image.name);
        }
        bool belongs = decoded.has_value() && PositionOf(decoded->seq) == position;
        slot.state = belongs ? SlotState::kIntact : SlotState::kDamaged;
        if (belongs) {
          slot.seq = decoded->seq;
          slot.previous = decoded->previous;
          slot.chain = format::ChainValue(slot.bytes);
          newest_ = std::max(newest_, slot.seq);
        }
      }
      parsed_[copy].push_back(slot);
    }
    return OkStatus();
  }

  // R2: the ring must still hold group applied + 1.
  Status CheckReach() const {
    if (newest_ <= applied_.seq + slots_) return OkStatus();
    return FailStatus(
        Code::kDataLoss,
        "the index holds groups up to {}, but the journal ({}) has gone on to {} and keeps only "
        "{}: "
        "the index is older than the journal reaches (was it restored from a backup?). Restore a "
        "newer copy of index/",
        applied_.seq, Names(), newest_, slots_);
  }

  // R3: what the index has applied must have been in the journal first.
  Status CheckIndexNotAhead() const {
    if (applied_.seq == 0) return OkStatus();
    bool other_history = false;
    for (size_t copy : {0, 1}) {
      const ParsedSlot& slot = At(copy, applied_.seq);
      if (!slot.intact() || slot.seq != applied_.seq) continue;
      if (slot.chain == applied_.chain || options_.mutations.skip_chain_check) return OkStatus();
      other_history = true;
    }
    if (other_history) {
      return FailStatus(Code::kDataLoss,
                        "index and journal ({}) disagree about group {}: they do not belong "
                        "together. Put back the index/ or the journal that belongs here",
                        Names(), applied_.seq);
    }
    if (newest_ > applied_.seq) return OkStatus();  // its slot is overwritten or damaged: see R4
    return FailStatus(Code::kDataLoss,
                      "ALARM: the index holds groups up to {}, but both journal copies ({}) end at "
                      "{}: the device acknowledged writes that it then lost. Do not trust this "
                      "device: replace it, and take a backup of index/ and journal from before",
                      applied_.seq, Names(), newest_);
  }

  // Slots that may be group `seq` after a group with chain value `chain`, distinct ones only.
  std::vector<ParsedSlot> Candidates(uint64_t seq, const Digest& chain) const {
    std::vector<ParsedSlot> found;
    for (size_t copy : {0, 1}) {
      const ParsedSlot& slot = At(copy, seq);
      if (!slot.intact() || slot.seq != seq) continue;
      if (slot.previous != chain && !options_.mutations.skip_chain_check) continue;
      if (!found.empty() && found.front().chain == slot.chain) continue;
      found.push_back(slot);
    }
    return found;
  }

  // R4: from `applied`, take each next slot that either copy holds and whose chain value fits.
  Status WalkChain() {
    plan_.last = applied_;
    for (uint64_t seq = applied_.seq + 1; seq <= applied_.seq + slots_; ++seq) {
      std::vector<ParsedSlot> found = Candidates(seq, plan_.last.chain);
      if (found.empty()) break;
      if (found.size() > 1 && !options_.mutations.skip_chain_check) {
        std::erase_if(
            found, [&](const ParsedSlot& slot) { return Candidates(seq + 1, slot.chain).empty(); });
        if (found.size() != 1) {
          return FailStatus(
              Code::kDataLoss,
              "the journal copies {} hold different groups {}, and nothing tells "
              "which is right. Move the copy that is not to be trusted away and start "
              "again: it is then made anew from the other",
              Names(), seq);
        }
      }
      Result<format::Slot> decoded = format::DecodeSlot(found.front().bytes, options_.store);
      REPRISE_CHECK(decoded.has_value());
      plan_.last = {seq, found.front().chain};
      accepted_[PositionOf(seq)] = found.front().bytes;
      plan_.replay.push_back({plan_.last, std::move(decoded->entries)});
    }
    return OkStatus();
  }

  // R5: an intact slot after the end means that the chain broke in the middle. Never truncated.
  Status CheckNothingBeyond() const {
    for (size_t copy : {0, 1}) {
      for (const ParsedSlot& slot : parsed_[copy]) {
        if (!slot.intact() || slot.seq <= plan_.last.seq) continue;
        return FailStatus(
            Code::kDataLoss,
            "group {} of the journal is damaged in both copies ({}), and later groups (up to {}) "
            "exist: acknowledged changes would be lost by going on. Restore one copy from a "
            "backup",
            plan_.last.seq + 1, Names(), newest_);
      }
    }
    return OkStatus();
  }

  // R5, first lap: what lies beyond the slot in flight was never written and must be zeros.
  Status CheckNeverWrittenPart() const {
    for (uint64_t seq = plan_.last.seq + 2; seq <= slots_; ++seq) {
      if (!Unusable(At(0, seq)) || !Unusable(At(1, seq))) continue;
      return FailStatus(Code::kDataLoss,
                        "slot {} of both journal copies ({}) holds something that is no group of "
                        "store {}, where nothing was written yet. Is the right volume mounted?",
                        PositionOf(seq), Names(), options_.store.ToHex());
    }
    return OkStatus();
  }

  static bool Unusable(const ParsedSlot& slot) {
    return slot.state == SlotState::kDamaged || slot.state == SlotState::kUnreadable;
  }

  // What `position` should hold: the accepted group if one lies there, else the better of the two.
  std::optional<ByteView> Desired(uint32_t position) const {
    if (!accepted_[position].empty()) return accepted_[position];
    const ParsedSlot& first = parsed_[0][position];
    const ParsedSlot& second = parsed_[1][position];
    if (applied_.seq != 0 && PositionOf(applied_.seq) == position) {
      for (const ParsedSlot* slot : {&first, &second}) {
        if (slot->intact() && slot->chain == applied_.chain) return slot->bytes;
      }
    }
    if (first.intact() && (!second.intact() || first.seq >= second.seq)) return first.bytes;
    if (second.intact()) return second.bytes;
    if (first.state == SlotState::kZero || second.state == SlotState::kZero) return kZeroSlot;
    return std::nullopt;
  }

  // R6: make both copies alike, the weaker first; then write the last group once more.
  void PlanRewrites() {
    for (uint32_t position = 0; position < slots_; ++position) {
      std::optional<ByteView> desired = Desired(position);
      if (!desired.has_value()) {
        NoteHopeless(position);
        continue;
      }
      for (size_t copy : {0, 1}) {
        const ParsedSlot& slot = parsed_[copy][position];
        bool alike =
            slot.state != SlotState::kUnreadable && std::ranges::equal(slot.bytes, *desired);
        if (alike) continue;
        plan_.rewrites.push_back({copy, position, *desired});
        NoteRepair(copy, position, slot);
      }
    }
    if (plan_.last.seq == 0) return;
    uint32_t position = PositionOf(plan_.last.seq);
    std::optional<ByteView> last = Desired(position);
    if (!last.has_value()) return;
    for (size_t copy : {0, 1}) {
      bool planned = std::ranges::any_of(plan_.rewrites, [&](const Rewrite& rewrite) {
        return rewrite.copy == copy && rewrite.position == position;
      });
      if (!planned) plan_.rewrites.push_back({copy, position, *last});
    }
  }

  void NoteHopeless(uint32_t position) {
    if (position == PositionOf(plan_.last.seq + 1)) {
      plan_.notes.push_back(fmt::format(
          "journal slot {} is torn in both copies: an unacknowledged group was being written",
          position));
    } else {
      plan_.notes.push_back(fmt::format(
          "journal slot {} is damaged in both copies; the index has it, nothing is lost",
          position));
    }
  }

  void NoteRepair(size_t copy, uint32_t position, const ParsedSlot& slot) {
    std::string_view what = slot.state == SlotState::kUnreadable ? "unreadable"
                            : slot.state == SlotState::kDamaged  ? "damaged"
                                                                 : "behind the other copy";
    plan_.notes.push_back(fmt::format("journal copy {}: slot {} was {}; rewritten",
                                      images_[copy].name, position, what));
  }

  const std::array<RingImage, 2>& images_;
  const Options& options_;
  const Mark applied_;
  const uint64_t slots_;
  std::array<std::vector<ParsedSlot>, 2> parsed_;
  uint64_t newest_ = 0;
  std::vector<ByteView> accepted_;  // by position: the group of (applied, W] that lies there
  RecoveryPlan plan_;
};

}  // namespace

Result<RecoveryPlan> PlanRecovery(const std::array<RingImage, 2>& images, const Options& options,
                                  const Mark& applied) {
  return Planner(images, options, applied).Run();
}

}  // namespace reprise::journal
