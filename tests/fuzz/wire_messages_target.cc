// One message body: the first byte picks the message, the rest is its body. Decoding is total, what
// decodes encodes to the same bytes, and memory stays in proportion to the body whatever it claims.
#include "core/wire/messages.h"

#include "tests/fuzz/allocation.h"
#include "tests/fuzz/golden.h"
#include "tests/fuzz/input.h"
#include "tests/fuzz/target.h"
#include "tests/unit/format/samples.h"
#include "tests/unit/wire/sample_messages.h"

namespace reprise::wire {
namespace {

template <typename Message>
void RunOne(std::string_view name, ByteView body) {
  fuzz::AllocationCount allocated;
  Result<Message> message = Decode<Message>(body);
  // The widest element is a skipped checkpoint: 48 bytes in memory for 20 encoded; lists double.
  REPRISE_CHECK(allocated.bytes() <= 16 * body.size() + 4096, name);
  if (!message.has_value()) {
    fuzz::CheckRefusal(message.error());
    REPRISE_CHECK(message.error().code() == Code::kInvalidArgument, name);
    return;
  }
  Bytes encoded = Encode(*message);
  REPRISE_CHECK(std::ranges::equal(encoded, body), name);
  Result<Message> again = Decode<Message>(encoded);
  REPRISE_CHECK(again.has_value() && *again == *message, name);
}

size_t MessageCount() {
  size_t count = 0;
  ForEachMessage([&]<typename Message>(std::string_view) { ++count; });
  return count;
}

void RunInput(ByteView input) {
  static const size_t kMessages = MessageCount();
  if (input.empty()) return;
  size_t wanted = input[0] % kMessages, index = 0;
  ForEachMessage([&]<typename Message>(std::string_view name) {
    if (index++ == wanted) RunOne<Message>(name, input.subspan(1));
  });
}

std::vector<Bytes> Seeds() {
  std::vector<Bytes> seeds;
  Rng rng(6);
  uint8_t index = 0;
  auto add = [&](ByteView body) {
    Bytes& seed = seeds.emplace_back(1, index);
    seed.insert(seed.end(), body.begin(), body.end());
  };
  ForEachMessage([&]<typename Message>(std::string_view name) {
    add(fuzz::Golden("wire_" + std::string(name)));
    for (int i = 0; i < 3; ++i) add(Encode(RandomMessage<Message>(rng)));
    ++index;
  });
  return seeds;
}

}  // namespace
}  // namespace reprise::wire

REPRISE_FUZZ_TARGET(wire_messages) = {.name = "wire_messages",
                                      .run = reprise::wire::RunInput,
                                      .seeds = reprise::wire::Seeds,
                                      .input_bytes_max = 1024};
