// Recovery of the journal from two damaged copies of its ring: the deciding half (PlanRecovery), on
// the images of a reference run. The input is a script of damage.
//
// While every slot has an untouched copy, all groups come back as they were written. When both copies
// of a slot are damaged, what comes back is a prefix, or recovery refuses. Whatever the damage (also
// slots forged with right checksums): groups are consecutive and chained, and what the plan rewrites
// leaves nothing for a second recovery to decide otherwise.
#include <array>
#include <cstring>

#include "core/base/log.h"
#include "server/journal/recovery.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"
#include "tests/unit/journal/journal_world.h"

namespace reprise::journal {
namespace {

constexpr size_t kSlotBytes = limits::kJournalSlotBytes;
constexpr size_t kCrcOffset = 12;

// The reference run, once per process: more groups than slots.
struct Reference {
  JournalRun run = RunReference({.keep_moments = false});
  std::array<Bytes, 2> copies;

  Reference() {
    run.disk.Crash(LoseUnflushed);
    Options options = TestOptions();
    copies[0] = *run.disk.Contents(options.path_a);
    copies[1] = *run.disk.Contents(options.path_b);
  }
};
const Reference& Base() {
  static const Reference* reference = new Reference;
  return *reference;
}

struct Damage {
  std::array<Bytes, 2> copies = Base().copies;
  std::array<std::vector<bool>, 2> unreadable{std::vector<bool>(kSlots), std::vector<bool>(kSlots)};
  bool forged = false;  // some damage has right checksums
  std::array<std::array<bool, kSlots>, 2> touched{};

  bool HasIntactCopies() const {
    for (uint32_t position = 0; position < kSlots; ++position) {
      if (touched[0][position] && touched[1][position]) return false;
    }
    return true;
  }
  std::array<RingImage, 2> Images() const {
    std::array<RingImage, 2> images;
    for (size_t copy : {0, 1}) {
      images[copy].name = copy == 0 ? "JOURNAL.0" : "JOURNAL.1";
      images[copy].bytes = AlignedBuffer::CopyOf(copies[copy]);
      images[copy].unreadable = unreadable[copy];
    }
    return images;
  }
};

void FixCrc(uint8_t* slot) {
  std::memset(slot + kCrcOffset, 0, sizeof(uint32_t));
  uint32_t crc = Crc32c(ByteView(slot, kSlotBytes));
  std::memcpy(slot + kCrcOffset, &crc, sizeof(crc));
}

// A slot that an encoder made, which belongs at `position` or nearly so.
Bytes ForgedSlot(fuzz::Script& script, uint32_t position) {
  format::Slot slot{.store = TestOptions().store};
  const std::vector<Group>& history = Base().run.history;
  uint64_t base = history.size() / kSlots * kSlots;
  slot.seq = std::max<uint64_t>(1, base + position + 8 * script.Below(4) - 8 * script.Below(3));
  if (script.Chance(40)) slot.seq = std::max<uint64_t>(1, script.Odd());
  if (script.Chance(160) && slot.seq >= 2 && slot.seq - 2 < history.size()) {
    slot.previous = history[slot.seq - 2].mark.chain;
  }
  for (size_t count = script.Below(3); count > 0; --count) {
    slot.entries.push_back(Tagged("forged"));
  }
  return format::EncodeSlot(slot);
}

void Hurt(fuzz::Script& script, Damage& damage) {
  size_t copy = script.Below(2);
  uint32_t position = static_cast<uint32_t>(script.Below(kSlots));
  uint8_t* slot = damage.copies[copy].data() + position * kSlotBytes;
  damage.touched[copy][position] = true;
  switch (script.Below(7)) {
    case 0:
      slot[script.Number(2) % kSlotBytes] ^= static_cast<uint8_t>(1 + script.Below(255));
      break;
    case 1: std::memset(slot, 0, kSlotBytes); break;
    case 2: damage.unreadable[copy][position] = true; break;
    case 3: {  // torn: the beginning of another slot
      const uint8_t* other =
          Base().copies[script.Below(2)].data() + script.Below(kSlots) * kSlotBytes;
      std::memcpy(slot, other, 512 * (1 + script.Below(8)));
      break;
    }
    case 4: {  // garbage, not long
      ByteView bytes = script.Take(script.Byte());
      std::ranges::copy(bytes, slot + script.Below(64));
      break;
    }
    case 5:
      slot[script.Number(2) % 256] ^= static_cast<uint8_t>(1 + script.Below(255));
      FixCrc(slot);
      damage.forged = true;
      break;
    default: {
      Bytes forged = ForgedSlot(script, position);
      std::memcpy(slot, forged.data(), forged.size());
      damage.forged = true;
    }
  }
}

void CheckGroups(const RecoveryPlan& plan, const Mark& applied) {
  uint64_t seq = applied.seq;
  for (const Group& group : plan.replay) REPRISE_CHECK(group.mark.seq == ++seq);
  REPRISE_CHECK(plan.last.seq == seq && plan.replay.size() <= kSlots);
  if (!plan.replay.empty()) REPRISE_CHECK(plan.last == plan.replay.back().mark);
}

// The plan's rewrites, carried out.
Damage AfterRewrites(Damage damage, const RecoveryPlan& plan) {
  for (const Rewrite& rewrite : plan.rewrites) {
    REPRISE_CHECK(rewrite.copy < 2 && rewrite.position < kSlots);
    REPRISE_CHECK(rewrite.slot.size() == kSlotBytes);
    std::memcpy(damage.copies[rewrite.copy].data() + rewrite.position * kSlotBytes,
                rewrite.slot.data(), kSlotBytes);
    damage.unreadable[rewrite.copy][rewrite.position] = false;
  }
  return damage;
}

void CheckSecondRecovery(const Damage& damage, const RecoveryPlan& plan, const Mark& applied) {
  std::array<RingImage, 2> images = AfterRewrites(damage, plan).Images();
  auto again = PlanRecovery(images, TestOptions(), applied);
  REPRISE_CHECK(again.has_value(), again.has_value() ? "" : again.error().message());
  REPRISE_CHECK(again->last == plan.last && again->replay.size() == plan.replay.size());
  // Only the last group is written once more; nothing is different any more.
  REPRISE_CHECK(again->rewrites.size() <= 2);
}

void RunInput(ByteView input) {
  fuzz::Script script(input);
  const JournalRun& run = Base().run;
  uint64_t last = run.history.size();
  Mark applied = run.history[last - 1 - script.Below(kSlots)].mark;
  if (script.Chance(10)) applied = {};
  Damage damage;
  for (size_t steps = script.Below(9); steps > 0 && !script.AtEnd(); --steps) Hurt(script, damage);
  std::array<RingImage, 2> images = damage.Images();
  auto plan = PlanRecovery(images, TestOptions(), applied);
  if (!plan.has_value()) {
    fuzz::CheckDecodeRefusal(plan.error());
    bool reachable = applied.seq + kSlots >= last;
    REPRISE_CHECK(damage.forged || !damage.HasIntactCopies() || !reachable, plan.error().message());
    return;
  }
  CheckGroups(*plan, applied);
  CheckSecondRecovery(damage, *plan, applied);
  if (damage.forged) return;
  Verdict verdict = Judge(run, applied, {}, plan->replay);
  REPRISE_CHECK(verdict.ok || verdict.why.starts_with("ends at"), verdict.why);
  if (damage.HasIntactCopies()) REPRISE_CHECK(plan->last == run.history.back().mark);
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds;
  Rng rng(13);
  for (uint8_t lag = 0; lag < kSlots; ++lag) seeds.push_back({lag, 255, 0});
  for (int i = 0; i < 24; ++i) {
    Bytes seed(48);
    for (uint8_t& byte : seed) byte = static_cast<uint8_t>(rng.Next());
    seed[1] |= 0x80;
    seeds.push_back(std::move(seed));
  }
  return seeds;
}

}  // namespace
}  // namespace reprise::journal

REPRISE_FUZZ_TARGET(journal_ring) = {.name = "journal_ring",
                                     .run = reprise::journal::RunInput,
                                     .seeds = reprise::journal::Seeds,
                                     .input_bytes_max = 512};
