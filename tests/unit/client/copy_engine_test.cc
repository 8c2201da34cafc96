#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <vector>

#include "client/device/host_engine.h"
#include "client/device/stream_copy.h"
#include "core/base/random.h"

namespace reprise::client {
namespace {

Bytes RandomBytes(Rng& rng, size_t size) {
  Bytes bytes(size);
  for (uint8_t& byte : bytes) byte = static_cast<uint8_t>(rng.Next());
  return bytes;
}

TEST(StreamCopy, CopiesEverySizeAtEveryAlignmentExactly) {
  Rng rng(1);
  Bytes source = RandomBytes(rng, 200'000);
  for (size_t size : {size_t{0}, size_t{1}, size_t{127}, kStreamBytesMin - 1, kStreamBytesMin,
                      kStreamBytesMin + 1, size_t{100'003}}) {
    for (size_t shift : {0, 1, 31, 63}) {
      Bytes target(size + 256, 0xAA);
      StreamCopy(target.data() + 64 + shift, source.data() + shift, size);
      CopyFence();
      ASSERT_EQ(std::memcmp(target.data() + 64 + shift, source.data() + shift, size), 0);
      ASSERT_EQ(target[63 + shift], 0xAA);
      ASSERT_EQ(target[64 + shift + size], 0xAA);
    }
  }
}

class CopyEngineTest : public testing::TestWithParam<uint32_t> {
 protected:
  HostEngine engine_{GetParam()};
};

TEST_P(CopyEngineTest, PartsLandAtTheirOffsetsAndGapsAreLeftAlone) {
  Rng rng(2);
  for (int round = 0; round < 50; ++round) {
    uint64_t size = 1 + rng.Below(200'000);
    Bytes expected(size, 0xEE);
    std::vector<Bytes> sources;
    std::vector<CopyPart> parts;
    for (uint64_t at = rng.Below(100); at < size;) {
      uint64_t bytes = std::min<uint64_t>(size - at, 1 + rng.Below(rng.Chance(1, 3) ? 60'000 : 90));
      bool zeros = rng.Chance(1, 5);
      sources.push_back(RandomBytes(rng, bytes));
      if (zeros) sources.back().assign(bytes, 0);
      std::memcpy(expected.data() + at, sources.back().data(), bytes);
      parts.push_back({zeros ? nullptr : sources.back().data(), at, bytes});
      at += bytes + rng.Below(3) * rng.Below(5000);
    }
    Bytes target(size, 0xEE);
    std::mutex mutex;
    std::vector<uint64_t> progress;
    CopyRequest request{.parts = parts, .target = target, .chunk_bytes = 4096};
    request.on_progress = [&](uint64_t done) {
      std::lock_guard lock(mutex);
      progress.push_back(done);
      // A finished prefix holds its final bytes.
      uint64_t end = std::min<uint64_t>(done * 4096, size);
      ASSERT_EQ(std::memcmp(target.data(), expected.data(), end), 0);
    };
    ASSERT_TRUE(engine_.Copy(request).ok());
    ASSERT_EQ(target, expected);
    ASSERT_FALSE(progress.empty());
    EXPECT_TRUE(std::ranges::is_sorted(progress));
    EXPECT_EQ(progress.back(), CeilDiv(size, 4096));
  }
}

TEST_P(CopyEngineTest, ACancelledCopyEndsWithoutReadingOn) {
  Bytes source(1 << 20, 1);
  std::vector<CopyPart> parts{{source.data(), 0, source.size()}};
  // Progress is a prefix: while the scheduler keeps one thread from its chunk, the others run ahead and
  // see the cancellation late. Not every time.
  for (int attempt = 0; attempt < 50; ++attempt) {
    Bytes target(1 << 20, 0);
    std::atomic<bool> cancelled{false};
    CopyRequest request{.parts = parts, .target = target, .chunk_bytes = 4096};
    request.cancelled = &cancelled;
    request.on_progress = [&](uint64_t done) { cancelled = cancelled || done >= 3; };
    Status status = engine_.Copy(request);
    // Threads in the middle of a chunk finish that one.
    bool stopped = target[(4 + GetParam()) * 4096] == 0;
    if (status.code() == Code::kCancelled && stopped) return;
  }
  FAIL() << "50 copies that were cancelled after 3 chunks went on";
}

TEST_P(CopyEngineTest, AnEmptyShardIsCopiedAtOnce) {
  CopyRequest request{.chunk_bytes = 4096};
  EXPECT_TRUE(engine_.Copy(request).ok());
}

INSTANTIATE_TEST_SUITE_P(Threads, CopyEngineTest, testing::Values(1, 2, 5));

}  // namespace
}  // namespace reprise::client
